"""JSON schemas of the shapes that applications send."""

import random
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]

_NAMES = [
    "id",
    "name",
    "title",
    "tags",
    "price",
    "count",
    "status",
    "owner",
    "created_at",
    "is_active",
    "notes",
    "items",
]
_WORDS = ["red", "green", "blue", "small", "large", "open", "closed", "north", "south", "high", "low", "yes", "no"]
_FORMATS = ["date", "date-time", "time", "email", "ipv4", "uuid", "hostname", "ipv6", "duration", "uri"]
_PATTERNS = ["^[A-Z]{2}-[0-9]{3}$", "^#[0-9a-f]{6}$", "^[a-z]+(-[a-z]+)?$", r"^\d{4}$", "^(cat|dog)s?$"]


def schemas(count: int, seed: int = 0) -> Iterator[Schema]:
    """As many schemas, the same for the same seed: each kind of leaf and of composition occurs."""
    for number in range(count):
        chooser = random.Random(f"{seed}-{number}")
        yield _KINDS[number % len(_KINDS)](chooser)


def _leaf(chooser: random.Random) -> Schema:
    leaves: list[Callable[[], Schema]] = [
        lambda: {"type": "string", "maxLength": chooser.randint(5, 20)},
        lambda: {"type": "string", "pattern": chooser.choice(_PATTERNS)},
        lambda: {"type": "string", "format": chooser.choice(_FORMATS)},
        lambda: {"enum": chooser.sample(_WORDS, 3)},
        lambda: {"const": chooser.choice(_WORDS)},
        lambda: {"type": "integer", "minimum": chooser.randint(-50, 0), "maximum": chooser.randint(1, 5000)},
        lambda: {"type": "number", "minimum": 0, "exclusiveMaximum": 100},
        lambda: {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 5},
        lambda: {"type": "boolean"},
        lambda: {"type": "null"},
        lambda: {"type": ["string", "null"], "maxLength": 8},
    ]
    return chooser.choice(leaves)()


def _object(chooser: random.Random, depth: int = 0) -> Schema:
    names = chooser.sample(_NAMES, chooser.randint(1, 4))
    properties = {name: _any(chooser, depth + 1) for name in names}
    required = names if chooser.random() < 0.7 else names[:1]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(chooser: random.Random, depth: int = 0) -> Schema:
    return {"type": "array", "items": _any(chooser, depth + 1), "minItems": chooser.randint(0, 2), "maxItems": 3}


def _any(chooser: random.Random, depth: int) -> Schema:
    if depth > 2 or chooser.random() < 0.6:
        return _leaf(chooser)
    return chooser.choice([_object, _array])(chooser, depth)


def _recursive(chooser: random.Random) -> Schema:
    node = {
        "type": "object",
        "properties": {"value": _leaf(chooser), "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}


def _tree(chooser: random.Random) -> Schema:
    child = {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}
    return {
        "type": "object",
        "properties": {"label": _leaf(chooser), "children": child},
        "required": ["label"],
        "additionalProperties": False,
    }


def _union(chooser: random.Random) -> Schema:
    def option(name: str) -> Schema:
        properties = {"kind": {"const": name}, "value": _leaf(chooser)}
        return {
            "type": "object",
            "properties": properties,
            "required": ["kind", "value"],
            "additionalProperties": False,
        }

    return {chooser.choice(["anyOf", "oneOf"]): [option(name) for name in chooser.sample(_WORDS, 3)]}


def _big_enum(chooser: random.Random) -> Schema:
    values = [f"{first}-{second}-{number}" for first in _WORDS for second in _WORDS for number in range(3)]
    return {"type": "object", "properties": {"choice": {"enum": values}}, "required": ["choice"]} | {
        "additionalProperties": False
    }


def _map(chooser: random.Random) -> Schema:
    return {"type": "object", "additionalProperties": _leaf(chooser), "maxProperties": 3, "minProperties": 1}


def _merged(chooser: random.Random) -> Schema:
    whole = _object(chooser, 2)
    names = list(whole["properties"])
    bounds = {"properties": {names[0]: {"not_a_keyword": True, "description": "the first"}}}
    return {"allOf": [whole, {"required": names}, bounds]}


def _tuple(chooser: random.Random) -> Schema:
    return {"type": "array", "prefixItems": [_leaf(chooser), _leaf(chooser)], "items": False, "minItems": 2}


def _definitions(chooser: random.Random) -> Schema:
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"part": _object(chooser, 2), "unit": _leaf(chooser)},
        "type": "object",
        "properties": {"first": {"$ref": "#/definitions/part"}, "unit": {"$ref": "#/definitions/unit"}},
        "required": ["first", "unit"],
        "additionalProperties": False,
    }


def _pattern_properties(chooser: random.Random) -> Schema:
    return {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,5}$": _leaf(chooser)},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    }


_KINDS = [
    _object,
    _array,
    _leaf,
    _recursive,
    _tree,
    _union,
    _big_enum,
    _map,
    _merged,
    _tuple,
    _definitions,
    _pattern_properties,
]
