"""Bad requests get the right status and a JSON error that names the field; streams too, before any 200."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import encoders
from support.bad_input import BadRequest, bad_requests
from support.client import events_of
from support.paths import LONG
from support.server import Server, wait_for

LIMIT_BYTES = 20_000

#: Concurrent streams beside bad requests.
STREAMS = 32

#: Maximum time for a refusal, by the server's clock, on a machine that does nothing else.
REFUSAL_MS = 1000

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMPLETION = {"prompt": "hi", "max_tokens": 2}

BAD_REQUESTS = bad_requests()

#: Routes whose field `stream` asks for a stream.
STREAMING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")

ServerFor = Callable[[str], Server]


@pytest.fixture(scope="module")
def server_for(tiny: Any, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFor]:
    """Returns the server of a model that the file names."""
    folder = tmp_path_factory.mktemp("reranker")
    models: dict[str, Callable[[], Path]] = {
        "generator": lambda: tiny("llama"),
        "encoder": lambda: minilm,
        "reranker": lambda: encoders.classifier(folder / "model", minilm, ["relevant"]),
    }
    running: dict[str, Server] = {}
    with ExitStack() as stack:

        def started(name: str) -> Server:
            if name not in running:
                flags = ["--dtype", "float32", "--log-requests", "--json-output"]
                limits = ["--max-total-tokens", "512"] if name == "generator" else []
                running[name] = stack.enter_context(Server("--model-id", models[name](), *flags, *limits))
            return running[name]

        yield started
        client = started("generator").client
        wait_for(lambda: client.metric("gridwork_cache_blocks_used") == 0, 5, "refusals hold no blocks")


@pytest.fixture(scope="module")
def server(server_for: ServerFor) -> Server:
    return server_for("generator")


def ask(server: Server, request: BadRequest, content: bytes | None = None) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return server.client.http.post(request.route, content=content or request.content, headers=headers)


def test_the_file_covers_every_dialect() -> None:
    routes = {request.route for request in BAD_REQUESTS}
    assert len(BAD_REQUESTS) >= 150
    assert {*STREAMING, "/v1/messages/count_tokens", "/generate", "/generate_stream", "/tokenize"} <= routes
    assert {"/embed", "/rerank", "/v1/embeddings", "/v1/score"} <= routes


@pytest.mark.parametrize("request_", BAD_REQUESTS, ids=lambda request: request.name)
def test_a_bad_request_is_refused(server_for: ServerFor, request_: BadRequest) -> None:
    request_.check(ask(server_for(request_.server), request_))


STREAMED = [
    request
    for request in BAD_REQUESTS
    if request.server == "generator" and request.route in STREAMING and request.may_be_streamed
]


@pytest.mark.parametrize("request_", STREAMED, ids=lambda request: request.name)
def test_a_stream_is_refused_before_its_first_event(server: Server, request_: BadRequest) -> None:
    content = json.dumps(json.loads(request_.content) | {"stream": True}).encode()
    response = ask(server, request_, content)
    assert response.status_code == request_.status, response.text
    assert response.headers["content-type"].startswith("application/json"), response.text


def test_streams_beside_bad_requests_are_undisturbed(server: Server) -> None:
    client = server.client
    bodies = [
        {"inputs": f"The boats number {number}", "parameters": {"max_new_tokens": 200, "details": True}}
        for number in range(STREAMS)
    ]

    def tokens(body: dict[str, Any]) -> list[int]:
        return [event["token"]["id"] for event in client.stream("/generate_stream", body)]

    quiet = client.together([lambda body=body: tokens(body) for body in bodies])
    requests = [request for request in BAD_REQUESTS if request.server == "generator"]
    over = threading.Event()
    rounds = [0] * STREAMS

    def stream_until_over(index: int) -> None:
        while not over.is_set() or rounds[index] == 0:
            assert tokens(bodies[index]) == quiet[index]
            rounds[index] += 1

    first_line = len(server.lines)
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream_until_over, index) for index in range(STREAMS)]
        try:
            with ThreadPoolExecutor(4) as askers:
                responses = askers.map(lambda request: ask(server, request), requests)
                for request, response in zip(requests, responses, strict=True):
                    request.check(response)
        finally:
            over.set()
        for stream in streams:
            stream.result()
    assert min(rounds) >= 1
    if LONG:
        times = refusal_times_ms(server.lines[first_line:])
        assert len(times) >= len(requests) // 2
        assert max(times) < REFUSAL_MS, sorted(times)[-5:]


def refusal_times_ms(lines: list[str]) -> list[float]:
    """Times of the refused requests in a server's log."""
    records = [json.loads(line) for line in lines if '"request finished"' in line]
    facts = [record.get("fields", record) for record in records]
    ends = ("complete", "length", "eos_token", "stop_sequence", "client_disconnected")
    return [record["total_ms"] for record in facts if record["reason"] not in ends]


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


def tgi(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "hi", "parameters": {"max_new_tokens": 2, **parameters}}


@pytest.mark.parametrize("parameter", ["best_of", "decoder_input_details"])
def test_parameters_that_cannot_be_streamed_are_refused(server: Server, parameter: str) -> None:
    value: Any = 2 if parameter == "best_of" else True
    response = server.client.post(
        "/generate_stream", tgi(do_sample=True) | {"parameters": {parameter: value, "do_sample": True}}
    )
    assert response.status_code == 422
    assert parameter in message_of(response, openai=False)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_a_missing_content_type_is_refused(server: Server, path: str) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}):
        response = server.client.http.post(
            path, content=json.dumps(CHAT | COMPLETION | {"inputs": "hi"}), headers=headers
        )
        assert response.status_code == 415, response.text
        assert "content-type" in message_of(response, openai=path.startswith("/v1/")).lower()


def test_too_large_a_body_is_refused(tiny: Any) -> None:
    with Server("--model-id", tiny("llama"), "--dtype", "float32", "--payload-limit", LIMIT_BYTES) as server:
        for path in ("/generate", "/v1/completions", "/v1/chat/completions"):
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


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
STRAYED = [
    {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{no"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "x"},
]


#: The beginning of a body, with a field that nothing reads.
DEEP = '{"zzz": ' + "[" * 20_000 + "]" * 20_000 + ", "


def schema(**keywords: Any) -> dict[str, Any]:
    return CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": keywords}}}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        pytest.param("/v1/chat/completions", CHAT | {"messages": CHAT["messages"] + STRAYED}, id="strayed call"),
        pytest.param("/v1/chat/completions", CHAT | {"tools": [TOOL, TOOL]}, id="a tool twice"),
        pytest.param("/v1/chat/completions", CHAT | {"tools": [TOOL] * 10_000}, id="10,000 tools"),
        pytest.param("/v1/completions", COMPLETION | {"guided_regex": "(x+x+)+y"}, id="backtracking"),
        pytest.param("/v1/completions", COMPLETION | {"guided_regex": "((a{1,1000}){1,1000}){1,1000}"}, id="repeats"),
        pytest.param("/v1/chat/completions", schema(type="array", minItems=10**7), id="minItems"),
        pytest.param("/v1/chat/completions", schema(type="string", minLength=10**9), id="minLength"),
        pytest.param("/v1/chat/completions", schema(type="string", maxLength=10**9), id="maxLength"),
        pytest.param("/v1/responses", {"input": "", "max_output_tokens": 2}, id="empty input"),
        pytest.param("/v1/chat/completions", DEEP, id="deep unknown field"),
    ],
)
def test_odd_requests_are_answered(server: Server, route: str, body: dict[str, Any] | str) -> None:
    content = body + json.dumps(CHAT)[1:] if isinstance(body, str) else json.dumps(body)
    headers = {"content-type": "application/json"}
    response = server.client.http.post(route, content=content.encode(), headers=headers)
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) == 2


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
