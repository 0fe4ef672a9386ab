"""Chat templates against Transformers: the reference answers of the router's own tests are those of the installed
version. `python integration-tests/test_chat_templates.py` rewrites them."""

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.server import Server
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

DATA = Path(__file__).parents[1] / "router/src/chat_template/testdata"
CONSTRUCTS = DATA / "constructs.json"
CONVERSATIONS = DATA / "conversations.json"
FAMILIES = DATA / "families"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# Names whose value in Jinja2 differs from call to call.
VARIES = re.compile(r"random|lipsum\(\)")
ADDRESS = re.compile(r"0x[0-9a-f]{8,}")


def render(template: str, **variables: Any) -> dict[str, str]:
    """Transformers' answer, or its exception."""
    messages = variables.pop("messages")
    try:
        # The annotation does not match the returned type.
        rendered: Any = render_jinja_template([messages], chat_template=template, **variables)
    except Exception as error:  # Templates may raise any exception of Jinja2.
        return {"error": type(error).__name__}
    if VARIES.search(template):
        return {"answer": "varies"}
    text = rendered[0][0]
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
    """A client's message in the form that callers of `apply_chat_template` use for a template of this style. Styles
    differ in missing contents, and in whether contents and arguments are texts."""
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
    """JSON with one line for each entry of the lists, for readable diffs."""
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
def test_answers_of_constructs_equal_those_of_transformers() -> None:
    committed = json.loads(CONSTRUCTS.read_text())["cases"]
    changed = [(old, new) for old, new in zip(committed, constructs()["cases"], strict=True) if old != new]
    assert changed == []


@pytest.mark.filterwarnings("ignore")
def test_prompts_of_known_styles_equal_those_of_transformers() -> None:
    committed = json.loads(CONVERSATIONS.read_text())["conversations"]
    changed = [(old, new) for old, new in zip(committed, conversations()["conversations"], strict=True) if old != new]
    assert changed == []


HOSTILE = """
{%- if hostile == 'loops' %}
    {%- for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}
{%- elif hostile == 'doubling' %}
    {%- set ns = namespace(x='x') %}
    {%- for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}
{%- elif hostile == 'output' %}
    {%- for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}
{%- elif hostile == 'depth' %}
    {%- macro m() %}{{ m() }}{% endmacro %}{{ m() }}
{%- endif %}"""


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one template for chats with tools and one for others, which can be made to run without end."""
    folder = shutil.copytree(tiny("llama"), tmp_path_factory.mktemp("templates") / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text(HOSTILE + (FAMILIES / "qwen_thinking.jinja").read_text())
    shutil.copy(FAMILIES / "llama_tools.jinja", folder / "additional_chat_templates/tool_use.jinja")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with Server("--model-id", folder) as server:
        yield server


def test_served_prompts_equal_those_of_transformers(folder: Path, server: Server) -> None:
    file = json.loads(CONVERSATIONS.read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    compared = 0
    for conversation in file["conversations"]:
        variables = conversation["variables"]
        family = "llama_tools" if "tools" in variables else "qwen_thinking"
        if "error" in conversation["answers"][family]:
            continue
        messages = [as_transformers_takes_it(message, file["families"][family]) for message in conversation["messages"]]
        options = {"add_generation_prompt": False, "continue_final_message": False} | conversation["options"]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, **options, **variables)
        body = {"messages": conversation["messages"], "chat_template_kwargs": variables, **options}
        assert server.client.ok("/chat_tokenize", body)["templated_text"] == prompt, conversation
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("hostile", ["loops", "doubling", "output", "depth"])
def test_an_endless_template_is_stopped_and_harms_no_other_request(server: Server, hostile: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "max_tokens": 3, "chat_template_kwargs": {"hostile": hostile}}
    plain = {"messages": messages, "max_tokens": 3, "temperature": 0}
    client = server.client
    calls = [lambda: client.post("/v1/chat/completions", body)] * 3 + [
        lambda: client.ok("/v1/chat/completions", plain)
    ] * 3
    answers = client.together(calls)
    for answer in answers[:3]:
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert "of the chat template, chat_template.jinja" in error["message"], error
    assert len({json.dumps(answer["choices"]) for answer in answers[3:]}) == 1


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    CONSTRUCTS.write_text("".join(lines(constructs())))
    CONVERSATIONS.write_text("".join(lines(conversations())))
