"""JSON schemas of the shapes that applications send, and grammars that must be refused."""

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


def _crossed(count: int) -> Schema:
    options = [[{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(4)] for i in range(count)]
    return {"allOf": [{"anyOf": each} for each in options]}


#: Fields of a request that must be refused: their name, the field that the error names, and words of its message.
REFUSED: list[tuple[Schema, str, str]] = [
    ({"guided_json": {"type": "strung"}}, "guided_json", "Invalid type"),
    ({"guided_json": {"type": 5}}, "guided_json", ""),
    ({"guided_json": [1]}, "guided_json", "JSON schema"),
    ({"guided_json": "{"}, "guided_json", "no JSON"),
    ({"guided_json": {"type": "object", "properties": 3}}, "guided_json", ""),
    ({"guided_json": {"not": {"type": "string"}}}, "guided_json", "not"),
    ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json", "uniqueItems"),
    ({"guided_json": {"type": "string", "format": "zipcode"}}, "guided_json", "zipcode"),
    ({"guided_json": {"type": "string", "pattern": "("}}, "guided_json", "unclosed"),
    ({"guided_json": {"type": "string", "pattern": "a(?!b)"}}, "guided_json", "look-around"),
    ({"guided_json": {"if": {}, "then": {}}}, "guided_json", "if"),
    ({"guided_json": {"dependentRequired": {"a": ["b"]}}}, "guided_json", "dependentRequired"),
    ({"guided_json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "guided_json", "oneOf"),
    ({"guided_json": {"$ref": "#/$defs/none"}}, "guided_json", "none"),
    ({"guided_json": {"$ref": "https://example.com/schema"}}, "guided_json", "example.com"),
    ({"guided_json": {"$ref": "file:///etc/passwd"}}, "guided_json", "passwd"),
    ({"guided_json": {"properties": {"a": {"type": "x"}}}}, "guided_json.properties.a", "Invalid type"),
    ({"guided_json": {"items": {"anyOf": [{}, {"type": "x"}]}}}, "guided_json.items.anyOf[1]", "Invalid type"),
    ({"guided_json": {"type": "string", "minLength": 3, "maxLength": 2}}, "guided_json", "minLength"),
    ({"guided_json": {"enum": []}}, "guided_json", ""),
    ({"guided_json": False}, "guided_json", "false"),
    ({"guided_json": {"x-guidance": {"lenient": True}, "not": {}}}, "guided_json", "weaken"),
    ({"guided_json": {"x-guidance": {"nonsense": 1}}}, "guided_json", ""),
    ({"guided_json": {"$ref": "#"}}, "guided_json", ""),
    ({"guided_json": {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}}, "guided_json", "end"),
    ({"guided_json": _crossed(14)}, "guided_json", "large"),
    ({"guided_json": {"enum": ["x" * 100] * 12000}}, "guided_json", "bytes"),
    ({"guided_json": {"description": "x" * 1_000_000}}, "guided_json", "bytes"),
    ({"guided_regex": "("}, "guided_regex", "unclosed"),
    ({"guided_regex": "a(?=b)"}, "guided_regex", "look-around"),
    ({"guided_regex": r"(a)\1"}, "guided_regex", "backreferences"),
    ({"guided_regex": "a\\"}, "guided_regex", "backslash"),
    ({"guided_regex": 7}, "guided_regex", "text"),
    ({"guided_regex": "[z-a]"}, "guided_regex", ""),
    ({"guided_regex": "(" * 2000 + ")" * 2000}, "guided_regex", ""),
    ({"guided_regex": "a" * 300_000}, "guided_regex", "bytes"),
    ({"guided_choice": []}, "guided_choice", "one or more"),
    ({"guided_choice": "yes"}, "guided_choice", "array"),
    ({"guided_choice": ["a", None]}, "guided_choice[1]", "text"),
    ({"guided_grammar": "start: nowhere"}, "guided_grammar", "unknown name"),
    ({"guided_grammar": 'begin: "a"'}, "guided_grammar", "start"),
    ({"guided_grammar": 'start: start "a"'}, "guided_grammar", ""),
    ({"guided_grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "guided_grammar", "nested"),
    ({"guided_grammar": "start: <|no_such_token|>"}, "guided_grammar", "special token"),
    ({"guided_grammar": "root ::= other"}, "guided_grammar", "other"),
    ({"ebnf": 'root ::= "a'}, "ebnf", "not closed"),
    ({"ebnf": 'root ::= "a" root'}, "ebnf", ""),
    ({"response_format": "json"}, "response_format", "type"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "yaml"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
        "response_format.json_schema.schema",
        "Invalid type",
    ),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex", "exclude"),
    ({"structured_outputs": {"nothing": 1}}, "structured_outputs", "needs one of"),
    ({"guided_json": {}, "response_format": {"type": "json_object"}}, "guided_json", "exclude"),
    ({"structural_tag": {"structures": []}}, "structural_tag", "triggers"),
    ({"structural_tag": {"format": {"type": "strange"}}}, "structural_tag.format.type", "strange"),
]
