"""Tool calls and reasoning, with OpenAI's own client. Grammars force the calls, so that a model that knows no tools
makes them too."""

import json
import re
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import openai
import pytest
from support.server import Server

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 3},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]

#: A template in the style of models that write calls as tags with parameters, and think before.
TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson ~ '\\n' }}{%- endfor %}
{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n\\n' }}{%- endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n<function=' ~ call.function.name ~ '>\\n' }}
{%- for key, value in call.function.arguments.items() %}
{{- '<parameter=' ~ key ~ '>\\n' ~ (value if value is string else value | tojson) ~ '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


@pytest.fixture(scope="module")
def client(smollm2_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2_server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def tagged_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SmolLM2 with a template that knows tools and reasoning."""
    folder = tmp_path_factory.mktemp("tagged") / "model"
    shutil.copytree(smollm2, folder, symlinks=False)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with Server("--model-id", folder, "--dtype", "float32") as server:
        yield server


@pytest.fixture(scope="module")
def tagged(tagged_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tagged_server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def is_weather(arguments: str) -> bool:
    given = json.loads(arguments)
    return set(given) == {"city", "days"} and given["city"] in ("Paris", "Rome") and given["days"] in (1, 2, 3)


@pytest.mark.parametrize("kind", ["client", "tagged"])
def test_a_named_function_is_called(kind: str, request: pytest.FixtureRequest) -> None:
    api: openai.OpenAI = request.getfixturevalue(kind)
    reply = api.chat.completions.create(
        model="any",
        messages=QUESTION,
        tools=[TIME, WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=200,
    )
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.id
    assert call.function.name == "get_weather"
    assert is_weather(call.function.arguments)


@pytest.mark.parametrize("kind", ["client", "tagged"])
def test_a_required_call_is_streamed_in_pieces(kind: str, request: pytest.FixtureRequest) -> None:
    api: openai.OpenAI = request.getfixturevalue(kind)
    with api.chat.completions.stream(
        model="any",
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=400,
    ) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    [call] = message.tool_calls
    assert call.function.name == "get_weather"
    assert is_weather(call.function.arguments)


def test_strings_without_quotes_follow_their_constraints(tagged: openai.OpenAI) -> None:
    properties = {
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{2}$"},
        "day": {"type": "string", "format": "date"},
        "note": {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 5}, {"type": "null"}]},
        "color": {"$ref": "#/$defs/color"},
    }
    parameters: Any = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        "$defs": {"color": {"enum": ["red", "blue"]}},
    }
    tools: Any = [{"type": "function", "function": {"name": "book", "parameters": parameters}}]
    calls = 0
    for seed in range(6):
        reply = tagged.chat.completions.create(
            model="any",
            messages=QUESTION,
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=1,
            seed=seed,
            max_tokens=120,
        )
        # An answer may think until the limit.
        if reply.choices[0].finish_reason != "tool_calls":
            continue
        assert reply.choices[0].message.tool_calls is not None
        [call] = reply.choices[0].message.tool_calls
        assert call.type == "function"
        given = json.loads(call.function.arguments)
        assert re.fullmatch(r"[A-Z]{2}-[0-9]{2}", given["code"])
        date.fromisoformat(given["day"])
        assert given["note"] is None or 1 <= len(given["note"]) <= 5
        assert given["color"] in ("red", "blue")
        calls += 1
        if calls == 2:
            break
    assert calls


def test_a_constraint_that_the_form_of_calls_cannot_hold_is_refused(tagged: openai.OpenAI) -> None:
    choices: Any = (("required", False), ("auto", True))
    for choice, strict in choices:
        function = {
            "name": "f",
            "strict": strict,
            "parameters": {"type": "object", "properties": {"a": {"type": "string", "format": "iri"}}},
        }
        tools: Any = [{"type": "function", "function": function}]
        with pytest.raises(openai.BadRequestError) as caught:
            tagged.chat.completions.create(model="any", messages=QUESTION, tools=tools, tool_choice=choice)
        assert caught.value.param == "tools[0].function.parameters.properties.a.format"


def test_results_of_calls_go_back_to_the_model(tagged: openai.OpenAI) -> None:
    first = tagged.chat.completions.create(
        model="any",
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_tokens=200,
    )
    message = first.choices[0].message
    assert message.tool_calls is not None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    messages: Any = [*QUESTION, message.model_dump(), result]
    second = tagged.chat.completions.create(
        model="any",
        messages=messages,
        tools=[WEATHER],
        temperature=0,
        max_tokens=20,
    )
    assert second.choices[0].finish_reason in ("stop", "length")


def test_the_format_that_was_found_is_told(tagged_server: Server, smollm2_server: Server) -> None:
    info = tagged_server.client.get("/info").json()
    assert "<function=NAME>" in info["tool_call_format"]
    assert "<think>…</think>" in info["reasoning_format"]
    assert any("format of tool calls: `" in line for line in tagged_server.lines)
    assert smollm2_server.client.get("/info").json()["tool_call_format"] == "none"


@pytest.mark.parametrize("n", [1, 2])
def test_calls_go_with_log_probabilities_and_choices(client: openai.OpenAI, n: int) -> None:
    reply = client.chat.completions.create(
        model="any",
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice="required",
        temperature=1,
        seed=1,
        n=n,
        logprobs=True,
        max_tokens=200,
    )
    assert len(reply.choices) == n
    for choice in reply.choices:
        assert choice.message.tool_calls
        assert choice.logprobs is not None
        assert choice.logprobs.content


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER], "tool_choice": "required", "extra_body": {"guided_regex": "a"}}, "guided_regex"),
    ],
)
def test_contradictions_are_refused_by_name(client: openai.OpenAI, change: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=QUESTION, **change)
    assert caught.value.param == field


FUNCTION: Any = WEATHER["function"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", ["client", "tagged"])
def test_functions_are_called_in_the_old_form(kind: str, stream: bool, request: pytest.FixtureRequest) -> None:
    api: openai.OpenAI = request.getfixturevalue(kind)
    asked: Any = {
        "model": "any",
        "messages": QUESTION,
        "functions": [FUNCTION],
        "function_call": {"name": "get_weather"},
        "temperature": 0,
        "max_tokens": 200,
    }
    if stream:
        names, arguments, reasons = [], "", []
        for chunk in api.chat.completions.create(stream=True, **asked):
            [choice] = chunk.choices
            assert choice.delta.tool_calls is None
            if (call := choice.delta.function_call) is not None:
                names += [call.name] if call.name else []
                arguments += call.arguments or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
        assert (names, reasons) == (["get_weather"], ["function_call"])
    else:
        [choice] = api.chat.completions.create(**asked).choices
        assert choice.finish_reason == "function_call"
        assert choice.message.content is None and choice.message.tool_calls is None
        assert choice.message.function_call is not None
        assert choice.message.function_call.name == "get_weather"
        arguments = choice.message.function_call.arguments
    assert is_weather(arguments)


def test_results_of_functions_give_the_prompt_of_those_of_tools(tagged_server: Server) -> None:
    def rendered(**more: Any) -> str:
        return str(tagged_server.client.ok("/v1/chat/completions/render", more)["prompt"])

    call = {"name": "get_weather", "arguments": '{"city": "Paris", "days": 1}'}
    old = rendered(
        messages=[
            *QUESTION,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "get_weather", "content": "sunny"},
        ],
        functions=[FUNCTION],
    )
    new = rendered(
        messages=[
            *QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": call}]},
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        ],
        tools=[WEATHER],
    )
    assert old == new and "sunny" in old and "<function=get_weather>" in old


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"functions": [{"description": "no name"}]}, "functions[0].name"),
        ({"functions": [FUNCTION], "function_call": {"name": "other"}}, "function_call"),
        ({"functions": [FUNCTION], "function_call": "required"}, "function_call"),
        ({"function_call": {"name": "get_weather"}}, "function_call"),
        ({"functions": [FUNCTION], "tools": [WEATHER]}, "functions"),
    ],
)
def test_wrong_functions_are_refused_by_name(client: openai.OpenAI, change: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=QUESTION, **change)
    assert caught.value.param == field
