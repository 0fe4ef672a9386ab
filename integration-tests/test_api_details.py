"""Details of the API: fields that are refused rather than ignored, and shapes that clients and browsers need."""

import re
from typing import Any

import httpx
import pytest
from support.paths import ROOT
from support.server import Server

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}
COMPLETION: dict[str, Any] = {"prompt": "hi", "max_tokens": 2, "temperature": 0}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "hi", "parameters": {"max_new_tokens": 2}},
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
}


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an OpenAI route."""
    assert response.status_code == status, response.text
    return response.json()["error"]


# --- fields that would change the answer are not ignored
# -----------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_beam_search", True),
        ("adapter_id", "mine"),
        ("max_new_tokens", 5),
    ],
)
def test_unsupported_fields_of_other_servers_are_refused(
    tiny_server: Server, path: str, field: str, value: Any
) -> None:
    for stream in (False, True):
        error = refusal(tiny_server.client.post(path, BODIES[path] | {field: value, "stream": stream}), 400)
        assert error["param"] == field
    assert tiny_server.client.post(path, BODIES[path] | {field: None}).status_code == 200


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/completions", "max_completion_tokens", 5),
        ("/v1/completions", "best_of", 0),
        ("/v1/chat/completions", "chat_template", "{{ messages }}"),
        ("/v1/chat/completions", "documents", [{"text": "a"}]),
        ("/v1/chat/completions", "echo", True),
    ],
)
def test_fields_of_another_route_are_refused(tiny_server: Server, path: str, field: str, value: Any) -> None:
    assert refusal(tiny_server.client.post(path, BODIES[path] | {field: value}), 400)["param"] == field


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/", "/tokenize"])
def test_parameters_beside_inputs_are_refused(tiny_server: Server, path: str) -> None:
    response = tiny_server.client.post(path, {"inputs": "hi", "max_new_tokens": 2})
    assert response.status_code == 422, response.text
    assert "`max_new_tokens` must stand in `parameters`" in response.json()["error"]


@pytest.mark.parametrize("value", [[], 3, "x"])
def test_parameters_must_be_an_object(tiny_server: Server, value: Any) -> None:
    response = tiny_server.client.post("/generate", {"inputs": "hi", "parameters": value})
    assert response.status_code == 422, response.text
    assert "expected an object" in response.json()["error"]


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e-38, 1e-7, 1e7, 1e38])
@pytest.mark.parametrize("path", list(BODIES))
def test_a_penalty_that_would_overflow_is_refused(tiny_server: Server, path: str, value: float) -> None:
    body = dict(BODIES[path])
    if path == "/generate":
        body["parameters"] = body["parameters"] | {"repetition_penalty": value}
    else:
        body["repetition_penalty"] = value
    response = tiny_server.client.post(path, body)
    assert response.status_code == (422 if path == "/generate" else 400), response.text
    assert "repetition_penalty" in response.text


@pytest.mark.parametrize("penalty", [1e-6, 1e6])
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e6])
def test_parameters_at_the_ends_of_their_ranges_work(tiny_server: Server, penalty: float, temperature: float) -> None:
    extremes = {"repetition_penalty": penalty, "temperature": temperature, "logit_bias": {"5": 100, "6": -100}}
    reply = tiny_server.client.ok("/v1/completions", COMPLETION | extremes | {"ignore_eos": True})
    assert reply["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_prompt_beyond_the_context_has_openais_code(tiny_server: Server, path: str) -> None:
    long = "boat " * 20_000
    prompts: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": long},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": long}]},
    }
    for change in ({"max_tokens": 10_000_000}, prompts[path]):
        error = refusal(tiny_server.client.post(path, BODIES[path] | change), 400)
        assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")


def test_errors_name_json_types(tiny_server: Server) -> None:
    for value, words in ((-1, "an integer from 0"), ("x", "an integer from 0"), ([], "invalid type: array")):
        error = refusal(tiny_server.client.post("/v1/completions", COMPLETION | {"max_tokens": value}), 400)
        assert words in error["message"]
        assert "u32" not in error["message"]


def test_a_message_without_content_is_refused_by_index(tiny_server: Server) -> None:
    for message in ({"role": "user"}, {"role": "user", "content": None}, {"role": "system", "content": None}):
        messages = [{"role": "user", "content": "hi"}, message]
        error = refusal(tiny_server.client.post("/v1/chat/completions", CHAT | {"messages": messages}), 400)
        assert error["param"] == "messages[1].content"


def test_a_null_content_of_the_assistant_is_an_empty_text(tiny_server: Server) -> None:
    def prompt(message: dict[str, Any]) -> Any:
        messages = [{"role": "user", "content": "hi"}, message, {"role": "user", "content": "go on"}]
        return tiny_server.client.ok("/chat_tokenize", {"messages": messages})["templated_text"]

    empty = prompt({"role": "assistant", "content": ""})
    assert prompt({"role": "assistant", "content": None}) == prompt({"role": "assistant"}) == empty


def test_a_model_id_that_is_not_text_is_refused_in_json(tiny_server: Server) -> None:
    assert refusal(tiny_server.client.get("/v1/models/%ff"), 400)["param"] == "model"


# --- shapes that clients depend on ------------------------------------------------------------------------------


def test_the_root_route_gives_the_whole_text_unless_told_otherwise(tiny_server: Server) -> None:
    client = tiny_server.client
    body: dict[str, Any] = {"inputs": "The boats", "parameters": {"max_new_tokens": 3}}
    new = client.ok("/generate", body)["generated_text"]
    assert client.ok("/", body) == [{"generated_text": "The boats" + new}]
    assert list(client.stream("/", body | {"stream": True}))[-1]["generated_text"] == "The boats" + new
    body["parameters"]["return_full_text"] = False
    assert client.ok("/", body) == [{"generated_text": new}]


def test_stop_text_stays_on_request(tiny_server: Server) -> None:
    client = tiny_server.client
    body = COMPLETION | {"max_tokens": 12, "ignore_eos": True}
    whole = client.ok("/v1/completions", body)["choices"][0]["text"]
    stop = whole[len(whole) // 2 :][:2]
    before = whole[: whole.index(stop)]
    choice = client.ok("/v1/completions", body | {"stop": stop})["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (before, "stop")
    with_stop = client.ok("/v1/completions", body | {"stop": stop, "include_stop_str_in_output": True})
    assert with_stop["choices"][0]["text"] == before + stop


def test_invocations_takes_the_bodies_of_all_generating_routes(tiny_server: Server) -> None:
    client = tiny_server.client
    generate = BODIES["/generate"]
    assert client.ok("/invocations", generate) == client.ok("/", generate)
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert client.ok("/invocations", BODIES[path])["choices"] == client.ok(path, BODIES[path])["choices"]
        chunks = list(client.stream("/invocations", BODIES[path] | {"stream": True}))
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert refusal(client.post("/invocations", CHAT | {"temperature": -1}), 400)["param"] == "temperature"
    assert client.post("/invocations", {}).json()["error_type"] == "validation"
    assert client.http.post("/invocations", content=b"{").status_code == 415


def test_chat_tokenize_shows_the_prompt_of_a_chat(tiny_server: Server) -> None:
    client = tiny_server.client
    reply = client.ok("/chat_tokenize", {"messages": CHAT["messages"]})
    assert "hi" in reply["templated_text"]
    ids = [token["id"] for token in reply["tokenize_response"]]
    assert len(ids) == client.ok("/v1/chat/completions", CHAT)["usage"]["prompt_tokens"]
    as_text = client.ok("/v1/completions", COMPLETION | {"prompt": ids})["choices"][0]["text"]
    assert as_text == client.ok("/v1/chat/completions", CHAT)["choices"][0]["message"]["content"]


def test_tokenize_and_detokenize_take_vllms_forms(tiny_server: Server) -> None:
    client = tiny_server.client
    own = client.ok("/tokenize", {"inputs": "The harbour wakes"})
    reply = client.ok("/tokenize", {"model": "any", "prompt": "The harbour wakes"})
    assert reply["tokens"] == [token["id"] for token in own]
    assert reply["count"] == len(own)
    assert reply["max_model_len"] == client.get("/info").json()["max_total_tokens"]
    assert reply["token_strs"] is None
    with_strs = client.ok("/tokenize", {"prompt": "The harbour wakes", "return_token_strs": True})
    assert len(with_strs["token_strs"]) == len(own)
    bare = client.ok("/tokenize", {"prompt": "The harbour wakes", "add_special_tokens": False})
    assert client.ok("/detokenize", {"tokens": bare["tokens"]}) == {"prompt": "The harbour wakes"}
    assert client.ok("/detokenize", {"tokens": []}) == {"prompt": ""}


def test_vllms_tokens_of_a_conversation_are_those_of_the_chat(tiny_server: Server) -> None:
    client = tiny_server.client
    messages = CHAT["messages"]
    ids = [token["id"] for token in client.ok("/chat_tokenize", {"messages": messages})["tokenize_response"]]
    body = {"messages": messages, "add_generation_prompt": True, "continue_final_message": False}
    assert client.ok("/tokenize", body)["tokens"] == ids
    shorter = client.ok("/tokenize", {"messages": messages, "add_generation_prompt": False})
    assert shorter["count"] < len(ids)
    both = {"messages": messages, "add_generation_prompt": True, "continue_final_message": True}
    assert refusal(client.post("/tokenize", both), 400)["param"] == "continue_final_message"


def test_detokenize_names_an_unknown_token(tiny_server: Server) -> None:
    error = refusal(tiny_server.client.post("/detokenize", {"tokens": [1, 99999999]}), 400)
    assert error["param"] == "tokens"
    assert "99999999" in error["message"]
    assert "-5" in refusal(tiny_server.client.post("/detokenize", {"tokens": [-5]}), 400)["message"]
    assert "tokens" in refusal(tiny_server.client.post("/detokenize", {}), 400)["message"]
    assert tiny_server.client.post("/tokenize", {}).status_code == 422


def test_browsers_may_send_the_headers_of_openais_client(tiny_server: Server) -> None:
    headers = {
        "Origin": "http://page",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    preflight = tiny_server.client.http.options("/v1/chat/completions", headers=headers)
    assert preflight.status_code == 200
    allowed = preflight.headers["access-control-allow-headers"].split(",")
    assert {"authorization", "content-type", "x-stainless-os"} <= set(allowed)
    answer = tiny_server.client.http.post("/v1/completions", json=COMPLETION, headers={"Origin": "http://page"})
    assert answer.headers["access-control-expose-headers"] == "*"


# --- pages ------------------------------------------------------------------------------------------------------


def test_the_documentation_page_needs_no_network(tiny_server: Server) -> None:
    page = tiny_server.client.http.get("/docs", follow_redirects=True)
    assert page.status_code == 200
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) > 4
    for asset in assets:
        assert not asset.startswith(("http", "//")), asset
        assert tiny_server.client.get(f"/docs/{asset.removeprefix('./')}").status_code == 200, asset
    settings = tiny_server.client.get("/docs/swagger-initializer.js").text
    assert "/api-doc/openapi.json" in settings
    assert re.search(r'"validatorUrl":\s*"none"', settings), settings


def test_the_page_about_the_api_has_every_route_of_the_document(tiny_server: Server) -> None:
    paths = tiny_server.client.get("/api-doc/openapi.json").json()["paths"]
    page = (ROOT / "docs" / "api.md").read_text()
    assert len(paths) > 10
    assert {path for path in paths if f"{path}`" not in page} == set()


def test_the_page_about_metrics_lists_all_metrics(tiny_server: Server) -> None:
    client = tiny_server.client
    client.ok("/v1/completions", COMPLETION)
    client.post("/v1/completions", {})
    shown = set(re.findall(r"^# TYPE (\w+) ", client.get("/metrics").text, flags=re.MULTILINE))
    tables = (ROOT / "docs" / "metrics.md").read_text().split("## From text-generation-inference")[0]
    rows = re.findall(r"^\| `(\w+)(?:\{\w+\})?` \| (\w+) \|", tables, flags=re.MULTILINE)
    # It has a label, so that it is shown only after the first failure.
    assert shown | {"gridwork_generation_failures_total"} == {name for name, _ in rows}
    kinds = re.findall(r"^# TYPE (\w+) (\w+)", client.get("/metrics").text, flags=re.MULTILINE)
    assert set(kinds) <= set(rows)
