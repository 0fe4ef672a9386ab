"""Bad requests get the right status and a JSON error that names the field; streams too, before any 200."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.client import events_of
from support.server import Server, wait_for

LIMIT_BYTES = 20_000


@pytest.fixture(scope="module")
def server(tiny: Any) -> Iterator[Server]:
    flags = ("--dtype", "float32", "--payload-limit", LIMIT_BYTES, "--max-total-tokens", 512)
    with Server("--model-id", tiny("llama"), *flags) as running:
        yield running
        wait_for(lambda: running.client.metric("gridwork_cache_blocks_used") == 0, 5, "refusals hold no blocks")


def message_of(response: httpx.Response, openai: bool) -> str:
    """The error's text, after checking the shape of the body."""
    assert response.headers["content-type"].startswith("application/json"), response.text
    body = response.json()
    if openai:
        assert set(body) == {"error"}, body
        assert {"message", "type", "param", "code"} <= set(body["error"]), body
        return f"{body['error']['message']} {body['error']['param'] or ''}"
    assert isinstance(body["error"], str), body
    assert isinstance(body["error_type"], str), body
    return body["error"]


CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMPLETION = {"prompt": "hi", "max_tokens": 2}


def tgi(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "hi", "parameters": {"max_new_tokens": 2, **parameters}}


LONG_TEXT = "boat " * 700

#: Path, body, status, and a word of the message.
BAD_BODIES = [
    # wrong types and missing fields
    ("/generate", {}, 422, "inputs"),
    ("/generate", {"inputs": 5}, 422, "inputs"),
    ("/generate", [], 422, ""),
    ("/generate", tgi(temperature="warm"), 422, "temperature"),
    ("/generate", tgi(stop="a string"), 422, "stop"),
    ("/generate", {"inputs": "hi", "parameters": 3}, 422, "parameters"),
    ("/v1/completions", {"max_tokens": 2}, 400, "prompt"),
    ("/v1/completions", COMPLETION | {"prompt": {"a": 1}}, 400, "prompt"),
    ("/v1/completions", COMPLETION | {"max_tokens": "two"}, 400, "max_tokens"),
    ("/v1/completions", COMPLETION | {"stream": "yes"}, 400, "stream"),
    ("/v1/chat/completions", {"max_tokens": 2}, 400, "messages"),
    ("/v1/chat/completions", {"messages": "hi"}, 400, "messages"),
    ("/v1/chat/completions", CHAT | {"logit_bias": [1]}, 400, "logit_bias"),
    ("/v1/chat/completions", CHAT | {"temperature": "warm"}, 400, "temperature"),
    # empty input
    ("/generate", {"inputs": ""}, 422, "inputs"),
    ("/v1/completions", {"prompt": ""}, 400, "prompt"),
    ("/v1/completions", {"prompt": []}, 400, "prompt"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    # too long
    ("/generate", {"inputs": LONG_TEXT}, 422, "inputs"),
    ("/v1/completions", {"prompt": LONG_TEXT}, 400, "prompt"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG_TEXT}]}, 400, "messages"),
    ("/generate", tgi(max_new_tokens=5000), 422, "max_new_tokens"),
    ("/v1/completions", COMPLETION | {"max_tokens": 5000}, 400, "max_tokens"),
    ("/v1/chat/completions", CHAT | {"max_tokens": 5000}, 400, "max_tokens"),
    # out of range: TGI
    ("/generate", tgi(max_new_tokens=0), 422, "max_new_tokens"),
    ("/generate", tgi(max_new_tokens=-1), 422, "max_new_tokens"),
    ("/generate", tgi(temperature=0.0), 422, "temperature"),
    ("/generate", tgi(temperature=-1.0), 422, "temperature"),
    ("/generate", tgi(repetition_penalty=0.0), 422, "repetition_penalty"),
    ("/generate", tgi(frequency_penalty=3.0), 422, "frequency_penalty"),
    ("/generate", tgi(top_k=0), 422, "top_k"),
    ("/generate", tgi(top_k=-4), 422, "top_k"),
    ("/generate", tgi(top_p=0.0), 422, "top_p"),
    ("/generate", tgi(top_p=1.5), 422, "top_p"),
    ("/generate", tgi(typical_p=0.0), 422, "typical_p"),
    ("/generate", tgi(typical_p=1.5), 422, "typical_p"),
    ("/generate", tgi(truncate=0), 422, "truncate"),
    ("/generate", tgi(truncate=100000), 422, "truncate"),
    ("/generate", tgi(stop=["a"] * 17), 422, "stop"),
    ("/generate", tgi(top_n_tokens=21), 422, "top_n_tokens"),
    ("/generate", tgi(best_of=0), 422, "best_of"),
    ("/generate", tgi(best_of=3, do_sample=True), 422, "best_of"),
    ("/generate", tgi(best_of=2), 422, "best_of"),
    ("/generate", tgi(best_of=2, do_sample=True, seed=1), 422, "seed"),
    ("/generate", tgi(seed=-1), 422, "seed"),
    ("/generate", tgi(adapter_id="nobody"), 404, "nobody"),
    # out of range: OpenAI
    ("/v1/completions", COMPLETION | {"max_tokens": 0}, 400, "max_tokens"),
    ("/v1/completions", COMPLETION | {"temperature": -0.5}, 400, "temperature"),
    ("/v1/completions", COMPLETION | {"top_p": -0.1}, 400, "top_p"),
    ("/v1/completions", COMPLETION | {"top_p": 1.1}, 400, "top_p"),
    ("/v1/completions", COMPLETION | {"min_p": -0.1}, 400, "min_p"),
    ("/v1/completions", COMPLETION | {"min_p": 1.1}, 400, "min_p"),
    ("/v1/completions", COMPLETION | {"presence_penalty": 2.5}, 400, "presence_penalty"),
    ("/v1/completions", COMPLETION | {"frequency_penalty": -2.5}, 400, "frequency_penalty"),
    ("/v1/completions", COMPLETION | {"repetition_penalty": -1.0}, 400, "repetition_penalty"),
    ("/v1/completions", COMPLETION | {"stop": ["a"] * 17}, 400, "stop"),
    ("/v1/completions", COMPLETION | {"suffix": "end"}, 400, "suffix"),
    ("/v1/completions", COMPLETION | {"prompt": ["a"] * 129}, 400, "prompt"),
    ("/v1/completions", COMPLETION | {"prompt": [1, 99999]}, 400, "prompt"),
    ("/v1/completions", COMPLETION | {"min_tokens": 3}, 400, "`min_tokens` must be at most `max_tokens`, which is 2"),
    ("/v1/completions", {"prompt": "hi", "min_tokens": 17}, 400, "`min_tokens` must be at most `max_tokens`"),
    ("/v1/completions", COMPLETION | {"min_tokens": -1}, 400, "min_tokens"),
    ("/v1/chat/completions", CHAT | {"min_tokens": 3}, 400, "`min_tokens` must be at most `max_tokens`, which is 2"),
    ("/v1/chat/completions", CHAT | {"generation_config": {"min_new_tokens": 3}}, 400, "`min_tokens` must be at most"),
    ("/generate", tgi(min_new_tokens=3), 422, "`min_new_tokens` must be at most `max_new_tokens`, which is 2"),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"99999": 1}}, 400, "logit_bias"),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"one": 1}}, 400, "logit_bias"),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"5": 101}}, 400, "logit_bias"),
    ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 50}, 400, "top_logprobs"),
    ("/v1/chat/completions", CHAT | {"max_completion_tokens": 0}, 400, "max_completion_tokens"),
    ("/v1/chat/completions", {"messages": [{"content": "hi"}]}, 400, "role"),
    # tools
    ("/v1/chat/completions", CHAT | {"tools": [{"type": "web_search"}]}, 400, "tools[0].type"),
    ("/v1/chat/completions", CHAT | {"tool_choice": "required"}, 400, "tool_choice"),
    # settings of `generate()`
    ("/v1/chat/completions", CHAT | {"generation_config": '{"num_beams": 4}'}, 400, "generation_config.num_beams"),
    ("/v1/completions", COMPLETION | {"model": 5}, 400, "model"),
    ("/tokenize", {}, 422, "inputs"),
]


def case_name(case: tuple[str, Any, int, str]) -> str:
    path, body, status, _ = case
    text = json.dumps(body)
    return f"{path} {text if len(text) < 60 else text[:57] + '...'} {status}"


@pytest.mark.parametrize("case", BAD_BODIES, ids=case_name)
def test_a_bad_body_is_refused(server: Server, case: tuple[str, Any, int, str]) -> None:
    path, body, status, word = case
    response = server.client.post(path, body)
    assert response.status_code == status, response.text
    assert word in message_of(response, openai=path.startswith("/v1/"))


STREAMED = [
    case for case in BAD_BODIES if isinstance(case[1], dict) and case[0] != "/tokenize" and "stream" not in case[1]
]


@pytest.mark.parametrize("case", STREAMED, ids=case_name)
def test_a_stream_is_refused_before_its_first_event(server: Server, case: tuple[str, Any, int, str]) -> None:
    path, body, status, word = case
    if path == "/generate":
        if (body.get("parameters") or {}) and isinstance(body["parameters"], dict) and "best_of" in body["parameters"]:
            word = "best_of"
        path = "/generate_stream"
    response = server.client.post(path, body | {"stream": True})
    assert response.status_code == status, response.text
    assert word in message_of(response, openai=path.startswith("/v1/"))


@pytest.mark.parametrize("parameter", ["best_of", "decoder_input_details"])
def test_parameters_that_cannot_be_streamed_are_refused(server: Server, parameter: str) -> None:
    value: Any = 2 if parameter == "best_of" else True
    response = server.client.post(
        "/generate_stream", tgi(do_sample=True) | {"parameters": {parameter: value, "do_sample": True}}
    )
    assert response.status_code == 422
    assert parameter in message_of(response, openai=False)


@pytest.mark.parametrize(
    "path", ["/generate", "/generate_stream", "/", "/tokenize", "/v1/completions", "/v1/chat/completions"]
)
def test_malformed_json_is_refused(server: Server, path: str) -> None:
    for content in (b'{"inputs": ', b"", b"\xff\xfe", b"null garbage"):
        response = server.client.http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, (content, response.text)
        message_of(response, openai=path.startswith("/v1/"))


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_a_missing_content_type_is_refused(server: Server, path: str) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}):
        response = server.client.http.post(
            path, content=json.dumps(CHAT | COMPLETION | {"inputs": "hi"}), headers=headers
        )
        assert response.status_code == 415, response.text
        assert "content-type" in message_of(response, openai=path.startswith("/v1/")).lower()


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_too_large_a_body_is_refused(server: Server, path: str) -> None:
    response = server.client.post(path, {"inputs": "x" * LIMIT_BYTES, "prompt": "x", "messages": []})
    assert response.status_code == 413, response.text
    assert str(LIMIT_BYTES) in message_of(response, openai=path.startswith("/v1/"))


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/generate/more"])
def test_an_unknown_route_is_refused(server: Server, path: str) -> None:
    for method in ("GET", "POST"):
        response = server.client.http.request(method, path)
        assert response.status_code == 404
        assert path in message_of(response, openai=path.startswith("/v1/"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/generate"),
        ("GET", "/v1/chat/completions"),
        ("DELETE", "/v1/completions"),
        ("POST", "/info"),
        ("PUT", "/health"),
    ],
)
def test_a_wrong_method_is_refused(server: Server, method: str, path: str) -> None:
    response = server.client.http.request(method, path)
    assert response.status_code == 405
    assert response.headers.get("allow")
    assert method in message_of(response, openai=path.startswith("/v1/"))


def test_harmless_fields_of_other_servers_are_accepted(server: Server) -> None:
    extras = {
        "ignore_eos": True,
        "min_p": 0.1,
        "top_k": 5,
        "repetition_penalty": 1.1,
        "user": "me",
        "nobody_knows": [1],
    }
    reply = server.client.ok("/v1/completions", COMPLETION | extras)
    assert reply["usage"]["completion_tokens"] == 2
    assert server.client.ok("/v1/completions", COMPLETION | {"top_p": 1.0, "stop": "zzz", "model": None})


def test_truncate_keeps_the_last_tokens(server: Server) -> None:
    client = server.client
    whole = client.generate("The boats are past the breakwater", max_new_tokens=6, decoder_input_details=True)
    tail = client.generate(
        "The boats are past the breakwater", max_new_tokens=6, truncate=3, decoder_input_details=True
    )
    assert [t["id"] for t in tail.details["prefill"]] == [t["id"] for t in whole.details["prefill"]][-3:]


def test_too_many_requests_get_429_and_running_ones_continue(trap: Path) -> None:
    with Server(
        *("--model-id", trap, "--dtype", "float32", "--trust-remote-code", "--max-concurrent-requests", 4),
    ) as server:
        client = server.client
        alone = client.generate_stream("The boats", max_new_tokens=60, seed=1)
        body = {"inputs": "The boats", "parameters": {"max_new_tokens": 60, "details": True}}
        running: list[list[int]] = [[] for _ in range(4)]

        def run(index: int) -> None:
            running[index].extend(event["token"]["id"] for event in client.stream("/generate_stream", body))

        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: all(running), 30, "four streams run")
        refused = client.together(
            [
                lambda path=path, stream=stream: client.post(
                    path, CHAT | COMPLETION | {"inputs": "hi", "stream": stream, "parameters": {"max_new_tokens": 2}}
                )
                for path in ("/generate", "/generate_stream", "/v1/completions")
                for stream in (False, True)
            ]
        )
        for response in refused:
            assert response.status_code == 429, response.text
            assert int(response.headers["retry-after"]) >= 1
            assert "overloaded" in response.text.lower()
        for thread in threads:
            thread.join()
        assert running == [alone.token_ids] * 4
        assert client.generate("again", max_new_tokens=2).token_ids


def test_a_refused_stream_leaves_the_connection_usable(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        for _ in range(3):
            assert http.post("/v1/completions", json=COMPLETION | {"stream": True, "top_p": 9}).status_code == 400
            with http.stream("POST", "/v1/completions", json=COMPLETION | {"stream": True}) as response:
                assert response.status_code == 200
                assert list(events_of(response))
