"""Habits of clients beyond the specification: names, headers, compressed bodies, numbers of any length."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.server import Server

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}
COMPLETION: dict[str, Any] = {"prompt": "hi", "max_tokens": 2, "temperature": 0}
KEY = "a-key"
LIMIT_BYTES = 20_000


@pytest.fixture(scope="module")
def server(tiny: Callable[[str], Path]) -> Iterator[Server]:
    flags = ("--dtype", "float32", "--payload-limit", LIMIT_BYTES, "--served-model-name", "gpt-4o", "org/other")
    with Server("--model-id", tiny("llama"), *flags, env={"API_KEY": KEY}) as running:
        running.client.http.headers["authorization"] = f"Bearer {KEY}"
        yield running


# --- names --------------------------------------------------------------------------------------------------------


def test_any_model_name_is_accepted_and_answers_have_the_first(server: Server) -> None:
    for name in (None, "", "tgi", "dummy", "gpt-4o", "org/other", "/a/b", "nobody"):
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
            assert server.client.ok(path, body | {"model": name})["model"] == "gpt-4o"
            (chunk, *_) = server.client.stream(path, body | {"model": name, "stream": True})
            assert chunk["model"] == "gpt-4o"
    assert server.client.post("/v1/completions", COMPLETION | {"model": 5}).status_code == 400


def test_every_served_name_is_listed_with_its_root(server: Server, tiny: Callable[[str], Path]) -> None:
    listed = server.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["gpt-4o", "org/other"]
    for model in listed:
        assert (model["root"], model["parent"]) == (str(tiny("llama")), None)
        assert model["max_model_len"] > 0
        assert server.client.get(f"/v1/models/{model['id']}").json() == model
    assert server.client.get("/v1/models/nobody").status_code == 404


# --- keys and paths -----------------------------------------------------------------------------------------------


def test_a_key_is_read_from_every_usual_header(server: Server) -> None:
    http = server.client.http
    for headers, status in [
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"authorization": "Bearer made-up", "x-api-key": KEY}, 200),
        ({"authorization": "", "api-key": KEY}, 200),
        ({"authorization": "", "x-api-key": "wrong"}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": ""}, 401),
    ]:
        response = http.post("/v1/completions", json=COMPLETION, headers=headers)
        assert response.status_code == status, (headers, response.text)
    assert "x-api-key" in response.json()["error"]["message"]


def test_a_base_url_without_v1_gets_an_openai_error(server: Server) -> None:
    for path in ("/chat/completions", "/completions", "/models", "/v1/v1/completions"):
        response = server.client.get(path) if path == "/models" else server.client.post(path, CHAT)
        assert response.status_code == 404, response.text
        assert "ends in /v1" in response.json()["error"]["message"]
    assert server.client.post("/generat", {}).json()["error_type"] == "not_found"


# --- compressed bodies --------------------------------------------------------------------------------------------


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize("path", ["/v1/completions", "/generate", "/invocations"])
def test_compressed_bodies_are_read(server: Server, path: str) -> None:
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 2}} if path == "/generate" else COMPLETION
    data = json.dumps(body).encode()
    for encoding, compressed in [
        ("gzip", gzip.compress(data)),
        ("x-gzip", gzip.compress(data)),
        ("deflate", zlib.compress(data)),
        ("deflate", raw_deflate(data)),
        ("identity", data),
        ("deflate, gzip", gzip.compress(zlib.compress(data))),
    ]:
        headers = {"content-type": "application/json", "content-encoding": encoding}
        response = server.client.http.post(path, content=compressed, headers=headers)
        assert response.status_code == 200, (encoding, response.text)


def test_other_encodings_bombs_and_damage_are_refused(server: Server) -> None:
    data = json.dumps(COMPLETION).encode()
    bomb = gzip.compress(b" " * 300_000_000, compresslevel=9)[:LIMIT_BYTES]
    for encoding, content, status in [
        ("br", data, 415),
        ("zstd", data, 415),
        ("gzip, br", data, 415),
        ("gzip", gzip.compress(b" " * (LIMIT_BYTES + 1)), 413),
        ("gzip", bomb, 413),
        ("gzip, gzip", gzip.compress(bomb), 413),
        ("gzip", data, 400),
        ("deflate", b"", 400),
        ("gzip", gzip.compress(data)[:-3], 400),
    ]:
        headers = {"content-type": "application/json", "content-encoding": encoding}
        response = server.client.http.post("/v1/completions", content=content, headers=headers)
        assert response.status_code == status, (encoding, status, response.text)
        assert response.json()["error"]["message"]
        assert (response.headers.get("accept-encoding") is not None) == (status == 415)


# --- numbers ------------------------------------------------------------------------------------------------------


def numeric_fields(document: dict[str, Any], path: str) -> Iterator[tuple[str, ...]]:
    """Paths of field names to the numbers of a request's schema."""
    content = document["paths"][path]["post"]["requestBody"]["content"]
    yield from _numbers(document, content["application/json"]["schema"], ())


def _numbers(document: dict[str, Any], schema: dict[str, Any], at: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].split("/")[-1]]
    if at and {"integer", "number"} & {*_listed(schema.get("type"))}:
        yield at
    for option in schema.get("oneOf", []):
        if at:
            yield from _numbers(document, option, at)
    for name, inner in schema.get("properties", {}).items():
        yield from _numbers(document, inner, (*at, name))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_errors_of_endless_numbers_name_the_field(server: Server, path: str) -> None:
    document = server.client.get("/api-doc/openapi.json").json()
    fields = sorted(set(numeric_fields(document, path)))
    assert len(fields) > 10
    good = {
        "/generate": {"inputs": "hi"},
        "/v1/completions": {"prompt": "hi"},
        "/v1/chat/completions": {"messages": CHAT["messages"]},
    }[path]
    for field in fields:
        for number in ("1e999", "-1e999", "9" * 400, "-" + "9" * 400, "1" + "0" * 30):
            value: Any = "NUMBER"
            for name in reversed(field[1:]):
                value = {name: value}
            body = json.dumps(good | {field[0]: value}).replace('"NUMBER"', number)
            response = server.client.http.post(path, content=body, headers={"content-type": "application/json"})
            assert response.status_code in (400, 422), (field, number, response.text)
            assert field[-1] in response.text, (field, number, response.text)
            assert "invalid_json" not in response.text, (field, number, response.text)


def test_errors_of_numbers_in_a_map_name_the_key(server: Server) -> None:
    body = json.dumps(COMPLETION)[:-1] + ', "logit_bias": {"5": 1e999}}'
    response = server.client.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logit_bias.5")


# --- fields -------------------------------------------------------------------------------------------------------


def test_a_top_p_of_zero_takes_the_most_likely_token(server: Server) -> None:
    body = COMPLETION | {"max_tokens": 8, "ignore_eos": True}
    greedy = server.client.ok("/v1/completions", body)["choices"]
    hot = server.client.ok("/v1/completions", body | {"temperature": 5, "top_p": 0})["choices"]
    assert hot == greedy


def test_settings_of_generate_are_read(server: Server) -> None:
    config = json.dumps({"do_sample": False, "max_new_tokens": 5, "transformers_version": "5.24.0"})
    chat = {"messages": CHAT["messages"], "ignore_eos": True}
    reply = server.client.ok("/v1/chat/completions", chat | {"generation_config": config})
    plain = server.client.ok("/v1/chat/completions", chat | {"temperature": 0, "max_tokens": 5})
    assert reply["choices"] == plain["choices"]
    assert reply["usage"]["completion_tokens"] == 5
    (event,) = server.client.stream("/load_model", {"model": "any"})
    assert event == {"status": "ready", "model": "any", "cached": True}


def test_limits_of_prompts_stops_and_alternatives_are_openais(server: Server) -> None:
    reply = server.client.ok("/v1/completions", COMPLETION | {"prompt": ["hi"] * 100, "max_tokens": 1})
    assert [choice["index"] for choice in reply["choices"]] == list(range(100))
    server.client.ok("/v1/completions", COMPLETION | {"stop": [f"stop {number}" for number in range(16)]})
    tops = server.client.ok("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 20})
    assert len(tops["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 20


# --- tools --------------------------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_tools_reach_the_template_and_the_answer_is_text(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    config = {"chat_template": "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{{ messages[0].content }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    flags = ("--dtype", "float32", "--tokenizer-config-path", tmp_path / "tokenizer_config.json")
    with Server("--model-id", tiny("llama"), *flags) as running:

        def prompt(more: dict[str, Any]) -> str:
            return running.client.ok("/chat_tokenize", CHAT | more)["templated_text"]

        assert prompt({}) == prompt({"tools": [TOOL], "tool_choice": "none"}) == "hi"
        assert prompt({"tools": [TOOL]}) == prompt({"tools": [TOOL], "tool_choice": "auto"}) == "[weather]hi"
        called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
        messages = [CHAT["messages"][0], called, {"role": "tool", "tool_call_id": "1", "content": "sunny"}]
        body = CHAT | {"messages": messages, "tools": [TOOL], "parallel_tool_calls": True}
        (choice,) = running.client.ok("/v1/chat/completions", body)["choices"]
        assert isinstance(choice["message"]["content"], str)
        named = {"type": "function", "function": {"name": "other"}}
        for wrong in (named, "sometimes"):
            refused = running.client.post("/v1/chat/completions", body | {"tool_choice": wrong})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"].startswith("tool_choice")
