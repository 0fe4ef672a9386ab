"""Chat templates against Transformers: the answers that the router's own tests compare with are those of the installed
Transformers. `python integration-tests/test_chat_templates.py` writes them anew."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

DATA = Path(__file__).parents[1] / "router/src/chat_template/testdata"
CONSTRUCTS = DATA / "constructs.json"
CONVERSATIONS = DATA / "conversations.json"
FAMILIES = DATA / "families"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# What Jinja2 answers otherwise each time.
VARIES = re.compile(r"random|lipsum\(\)")
ADDRESS = re.compile(r"0x[0-9a-f]{8,}")


def render(template: str, **variables: Any) -> dict[str, str]:
    """Transformers' answer, or the exception that it ends with."""
    messages = variables.pop("messages")
    try:
        (text,), _ = render_jinja_template([messages], chat_template=template, **variables)
    except Exception as error:  # What a template may raise is Jinja2's own affair.
        return {"error": type(error).__name__}
    if VARIES.search(template):
        return {"answer": "varies"}
    return {"answer": ADDRESS.sub("0x…", text).encode("utf-8", "backslashreplace").decode()}


def constructs() -> dict[str, Any]:
    """The constructs with Transformers' answers."""
    file = json.loads(CONSTRUCTS.read_text())
    for case in file["cases"]:
        for key in ("answer", "error"):
            case.pop(key, None)
        case.update(render(case["template"], **json.loads(json.dumps(file["variables"]))))
    return file


def as_transformers_takes_it(message: dict[str, Any], style: dict[str, Any]) -> dict[str, Any]:
    """A client's message as callers of `apply_chat_template` write it for a template of this style: what stands for a
    content that is not there, whether contents and arguments are texts."""
    plain = {key: value for key, value in message.items() if value is not None}
    if message["role"] == "assistant" and message.get("content") is None:
        plain = {"role": plain.pop("role"), "content": style["null"], **plain}
    if isinstance(plain.get("content"), list):
        plain["content"] = [
            {"type": "text", "text": part.get("text", part.get("refusal"))} for part in plain["content"]
        ]
        if style["content"] == "text":
            plain["content"] = "".join(part["text"] for part in plain["content"])
    calls = []
    for call in plain.get("tool_calls", []):
        function = dict(call["function"])
        arguments = function["arguments"] or "{}"
        function["arguments"] = arguments if style["arguments"] == "text" else json.loads(arguments)
        calls.append({**{key: value for key, value in call.items() if value is not None}, "function": function})
    return {**plain, "tool_calls": calls} if calls else plain


def conversations() -> dict[str, Any]:
    """The conversations with Transformers' prompts for each family's template."""
    file = json.loads(CONVERSATIONS.read_text())
    for conversation in file["conversations"]:
        answers = {}
        for family, style in file["families"].items():
            template = (FAMILIES / f"{family}.jinja").read_text()
            messages = [as_transformers_takes_it(message, style) for message in conversation["messages"]]
            variables = TOKENS | conversation["variables"]
            answers[family] = render(template, messages=messages, **conversation["options"], **variables)
        conversation["answers"] = answers
    return file


def lines(file: dict[str, Any]) -> Iterator[str]:
    """JSON with a line for each entry of the lists, so that a change shows where it is."""
    opened = "{"
    for name, value in file.items():
        yield f"{opened}{json.dumps(name)}: "
        if isinstance(value, list):
            yield "[\n" + ",\n".join(json.dumps(entry) for entry in value) + "\n]"
        else:
            yield json.dumps(value)
        opened = ",\n"
    yield "}\n"


@pytest.mark.filterwarnings("ignore")
def test_the_constructs_answers_are_those_of_transformers() -> None:
    committed = json.loads(CONSTRUCTS.read_text())["cases"]
    changed = [(old, new) for old, new in zip(committed, constructs()["cases"], strict=True) if old != new]
    assert changed == []


@pytest.mark.filterwarnings("ignore")
def test_the_prompts_of_well_known_styles_are_those_of_transformers() -> None:
    committed = json.loads(CONVERSATIONS.read_text())["conversations"]
    changed = [(old, new) for old, new in zip(committed, conversations()["conversations"], strict=True) if old != new]
    assert changed == []


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    CONSTRUCTS.write_text("".join(lines(constructs())))
    CONVERSATIONS.write_text("".join(lines(conversations())))
