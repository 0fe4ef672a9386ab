"""The table of recorded programs in `program_table.def`, read for Python.

The compiled library is built from the same file. `HASH` tells whether both have the same table.
"""

import re
from pathlib import Path

_LISTS = re.compile(r"^#define GRIDWORK_(\w+)\(X\)((?:.*\\\n)*.*)", re.MULTILINE)
_ITEM = re.compile(r"X\((\w+)(?:, (\w+))?\)|GRIDWORK_(\w+)\(X\)")

Operands = tuple[tuple[str, str], ...]
"""(kind, name) of each operand, in order."""


def _expand(lists: dict[str, str], name: str) -> list[tuple[str, str]]:
    """The items of a list, with those of the lists that it contains."""
    items: list[tuple[str, str]] = []
    for first, second, nested in _ITEM.findall(lists[name]):
        items += _expand(lists, nested) if nested else [(first, second.removeprefix("GRIDWORK_"))]
    return items


PATH = Path(__file__).with_suffix(".def")
_TEXT = dict(_LISTS.findall(PATH.read_text()))


def _numbered(name: str) -> dict[str, int]:
    return {item: number for number, (item, _) in enumerate(_expand(_TEXT, name))}


TYPES = _numbered("TYPES")
ACTIVATIONS = _numbered("ACTIVATIONS")
NORMS = _numbered("NORMS")
OPERATIONS: dict[str, Operands] = {
    name: tuple(_expand(_TEXT, operands)) for name, operands in _expand(_TEXT, "OPERATIONS")
}
LAYOUT: Operands = tuple(_expand(_TEXT, "LAYOUT"))
STATES: Operands = tuple(_expand(_TEXT, "STATES"))

NUM_LAYOUTS = 2
"""Layouts in each call: the first for layers without a window, the second for layers with one."""


def _hash(text: str) -> int:
    """64-bit FNV-1a (Fowler, Noll and Vo), as `cpu/program/program.cpp` computes it."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def _words(operands: Operands) -> str:
    return "".join(f"{kind} {name} " for kind, name in operands)


HASH = _hash(
    "".join(f"{name} " for names in (TYPES, ACTIVATIONS, NORMS) for name in names)
    + "".join(f"{name} {_words(operands)}" for name, operands in OPERATIONS.items())
    + _words(LAYOUT)
    + _words(STATES)
)
