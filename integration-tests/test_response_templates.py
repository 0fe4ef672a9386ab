"""Answers taken apart by Transformers' own parser: the reference answers of the router's parser are those of the
installed version. `python integration-tests/test_response_templates.py` rewrites them."""

import json
from pathlib import Path
from typing import Any

from transformers.utils.chat_parsing import parse_response

FILE = Path(__file__).parents[1] / "router/src/tool_calls/testdata/response_templates.json"
END = {"close_pattern": r"\s*<\|im_end\|>", "content": "text"}
REASONING = {"open": "<think>", "close": "</think>", "content": "text"}
CALL = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "ratio": {"type": "number"},
                    "flag": {"type": "boolean"},
                    "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                    "list": {"type": "array"},
                },
            },
        },
    }
    for name in ("weather", "look_up")
]


def template(tool_calls: dict[str, Any], reasoning: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A response template whose turns begin with a header."""
    fields = {"reasoning_content": reasoning or REASONING, "tool_calls": tool_calls, "content": END}
    return {"defaults": {"role": "assistant"}, "start_anchor": "<|im_start|>assistant\n", "fields": fields, **more}


TEMPLATES = {
    "objects_in_tags": template(
        {
            "open_pattern": r"\s*<call>",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        }
    ),
    "list": template(
        {
            "open": "<calls>",
            "close": "</calls>",
            "content": "json",
            "transform_each": True,
            "transform": {"type": "function", "function": {"name": "{tool}", "arguments": "{input}"}},
        }
    ),
    "name_and_object": template(
        {
            "open_pattern": r"\s*\[CALL\](?P<name>[\w-]+)\[ARGS\]",
            "close": "[/CALL]",
            "repeats": True,
            "content": "json",
            "transform": CALL,
        }
    ),
    "parameters": template(
        {
            "open_pattern": r"\s*<tool>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
            "transform": CALL,
        }
    ),
    "bare_keys": template(
        {
            "open_pattern": r"\s*<\|call>call:(?P<name>\w+)",
            "close": "<call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": CALL,
        },
        {"open": "<|thought>", "close": "<thought|>", "content": "text"},
    ),
}
OBJECT = '{"name": "weather", "arguments": {"city": "São \\"Paulo\\"", "days": 3, "list": [1, null, {"a": []}]}}'
ANSWERS = {
    "objects_in_tags": [
        f"<call>{OBJECT}</call>",
        f'Let me see.\n<call>\n{OBJECT}\n</call>\n<call>{{"name": "look_up", "arguments": {{}}}}</call>',
        f"<think>\nhm\n\nso\n</think>\n\n<call>{OBJECT}</call>",
    ],
    "list": [
        '<calls>[{"tool": "weather", "input": {"city": "a"}}, {"tool": "look_up", "input": {}}]</calls>',
        'Both.\n\n<calls>\n[\n  {"tool": "weather", "input": {"days": 1.5}}\n]\n</calls>',
    ],
    "name_and_object": [
        '[CALL]weather[ARGS]{"city": "x", "flag": true}[/CALL]',
        '<think>a</think>Text [CALL]weather[ARGS]{"city": "]}"}[/CALL]\n[CALL]look_up[ARGS]{}[/CALL]',
    ],
    "parameters": [
        "<tool>\n<function=weather>\n<parameter=city>\nNew York\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool>",
        "<tool><function=weather><parameter=ratio>2.50</parameter><parameter=flag>True</parameter>"
        "<parameter=maybe>None</parameter><parameter=list>[1, 2]</parameter></function></tool>\n"
        "<tool>\n<function=look_up>\n</function>\n</tool>",
        "Yes.\n\n<tool>\n<function=weather>\n<parameter=city>\n  a\n\n  b\n</parameter>\n<parameter=days>\nsoon\n"
        "</parameter>\n<parameter=other>\n12\n</parameter>\n</function>\n</tool>",
    ],
    "bare_keys": [
        '<|call>call:weather{city:<|"|>São, {Paulo}<|"|>,days:3,flag:false}<call|>',
        '<|thought>hm<thought|>Text\n<|call>call:weather{list:[1,<|"|>a<|"|>],maybe:null}<call|><|call>call:look_up{}<call|>',
    ],
}
EVERYWHERE = ["Only text.", "<think>thought</think>\n\nThe answer <b>is</b> 5.", "The end.<|im_end|>"]
PREFIXES = ["<|im_start|>user\nhi <think><|im_end|>\n<|im_start|>assistant\n"]


def cases() -> list[dict[str, Any]]:
    """Answers with the messages that Transformers makes of them."""
    found = []
    for name, spec in TEMPLATES.items():
        for answer in ANSWERS[name] + EVERYWHERE:
            for prefix in PREFIXES:
                message = parse_response(answer, json.loads(json.dumps(spec)), prefix=prefix, tools=TOOLS)
                found.append({"template": name, "prefix": prefix, "answer": answer, "message": message})
        opened = spec["fields"]["reasoning_content"]["open"]
        answer = f"thought{spec['fields']['reasoning_content']['close']}\n\ntext"
        prefix = PREFIXES[0] + opened + "\n"
        message = parse_response(answer, json.loads(json.dumps(spec)), prefix=prefix, tools=TOOLS)
        found.append({"template": name, "prefix": prefix, "answer": answer, "message": message})
    return found


def file() -> dict[str, Any]:
    return {"templates": TEMPLATES, "tools": TOOLS, "cases": cases()}


def test_reference_answers_are_those_of_the_installed_version() -> None:
    assert json.loads(FILE.read_text()) == file()


if __name__ == "__main__":
    FILE.write_text(json.dumps(file(), ensure_ascii=False, indent=1) + "\n")
