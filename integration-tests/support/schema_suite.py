"""The JSON Schema Test Suite: its cases, and the texts that spell an instance."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from .paths import JSON_SCHEMA_SUITE

#: Drafts that clients name in `$schema`.
DRAFTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}

#: Files about what schemas say of the contents of texts, which later drafts call annotations, and of numbers that are
#: different only before JSON is parsed.
_LEFT_OUT = {"draft7/optional/content.json", "draft4/optional/zeroTerminatedFloats.json"}

#: Maximum number of texts that spell one instance.
_MAX_TEXTS = 300


@dataclass(frozen=True)
class Instance:
    description: str
    value: Any
    is_valid: bool


@dataclass(frozen=True)
class Case:
    """A schema with instances. place: draft, file and description."""

    place: str
    schema: Any
    instances: list[Instance]


def cases(draft: str) -> Iterator[Case]:
    """Cases of a draft, those of optional behaviour too."""
    folder = JSON_SCHEMA_SUITE / "tests" / draft
    for path in sorted(folder.rglob("*.json")):
        if path.relative_to(folder.parent).as_posix() in _LEFT_OUT:
            continue
        name = path.relative_to(folder).with_suffix("")
        for group in json.loads(path.read_text()):
            instances = [Instance(test["description"], test["data"], test["valid"]) for test in group["tests"]]
            yield Case(f"{draft} {name}: {group['description']}", _named(group["schema"], draft), instances)


def _named(schema: Any, draft: str) -> Any:
    """The schema with the name of its draft, which the suite's older files leave out."""
    if isinstance(schema, dict) and "$schema" not in schema:
        return {"$schema": DRAFTS[draft], **schema}
    return schema


def texts(value: Any) -> list[str]:
    """Texts that spell an instance: its keys in any order, numbers and characters in their forms."""
    return list(itertools.islice(dict.fromkeys(_texts(value)), _MAX_TEXTS))


def _texts(value: Any) -> Iterator[str]:
    match value:
        case dict():
            orders = itertools.islice(itertools.permutations(value.items()), 24)
            for order in orders:
                members = [[f"{key}:{text}" for key in _texts(name) for text in texts(each)] for name, each in order]
                yield from ("{" + ",".join(chosen) + "}" for chosen in itertools.product(*members))
        case list():
            items = [texts(each) for each in value]
            yield from ("[" + ",".join(chosen) + "]" for chosen in itertools.product(*items))
        case str():
            yield json.dumps(value, ensure_ascii=False)
            yield json.dumps(value)
        case bool() | None:
            yield json.dumps(value)
        case _:
            yield json.dumps(value)
            exact = Decimal(str(value))
            yield f"{exact:f}"
            if exact == exact.to_integral_value():
                yield f"{exact.to_integral_value():f}"


def exists() -> bool:
    return Path(JSON_SCHEMA_SUITE / "tests" / "draft2020-12").is_dir()
