"""No client blocks others by holding places, connections, threads or memory, or learns their prompts."""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.client import Client
from support.hostile_clients import (
    RawClient,
    giant_prompts,
    half_open_connections,
    idle_connections,
    slow_bodies,
    still_writing,
    unread_answers,
    unread_stream,
)
from support.server import Server, wait_for

MAX_CONNECTIONS = 60
PAYLOAD_LIMIT = 2_000_000

#: Timeouts of the server under test, and a time after which they have expired on a busy machine too.
TIMEOUT_S = 3
PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def server(tiny: Callable[[str], Path]) -> Iterator[Server]:
    """A server with short timeouts, 32 places and few connections."""
    with Server(
        *("--model-id", tiny("llama"), "--dtype", "float32", "--max-concurrent-requests", 32),
        *("--max-connections", MAX_CONNECTIONS, "--client-read-timeout", TIMEOUT_S),
        *("--client-write-timeout", TIMEOUT_S, "--client-idle-timeout", TIMEOUT_S),
    ) as running:
        yield running
        wait_for(lambda: running.client.metric("gridwork_cache_blocks_used") == 0, 20, "no blocks are held")


def small(client: Client) -> None:
    """Checks that another client's request is answered."""
    assert client.generate("hi", max_new_tokens=2).token_ids


def echo_body(n: int) -> dict[str, Any]:
    return {"n": n, "echo": True, "stream": True, "ignore_eos": True, "temperature": 1.0}


def test_an_unread_stream_holds_no_places(server: Server, tiny: Callable[[str], Path]) -> None:
    limit = server.client.get("/info").json()["max_input_tokens"]
    # All 32 places, with an echo that fills every buffer on the way to the client.
    body = echo_body(32) | {"prompt": [5] * (limit - 8), "max_tokens": 4, "logprobs": 5}
    generated = "gridwork_generated_tokens_total"
    all_tokens = server.client.metric(generated) + 32 * 4
    with unread_stream(server.port, "/v1/completions", body) as client:
        wait_for(lambda: server.client.metric(generated) == all_tokens, PATIENCE_S, "all is generated")
        small(server.client)
        assert server.client.together([lambda: server.client.generate("a", max_new_tokens=2)] * 8)
        assert client.closed_within(PATIENCE_S)


def test_a_slow_reader_gets_its_whole_answer(server: Server) -> None:
    body = echo_body(8) | {"prompt": [5] * 100, "max_tokens": 40, "logprobs": 2, "seed": 1}
    expected = list(server.client.stream("/v1/completions", body))
    with RawClient(server.port, receive_bytes=4096) as client:
        client.post("/v1/completions", body, "connection: close")
        # Longer than the limit for a client that reads nothing.
        text = client.read_to_end(pause_s=0.05, chunk_bytes=2048).decode()
    assert text.endswith("data: [DONE]\n\n\r\n0\r\n\r\n"), text[-200:]
    assert text.count('"finish_reason":"length"') == 8 == str(expected).count("'length'")


def refuses_by_name(server: Server) -> None:
    """Flags bound the size of answers, and the errors name them."""
    post = server.client.post
    for path, prompt in (
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        refused = post(path, prompt | {"n": 17, "max_tokens": 1})
        assert refused.status_code == 400 and "--max-n" in refused.text
    refused = post("/v1/completions", {"prompt": "word " * 30, "n": 16, "max_tokens": 1, "echo": True})
    assert refused.status_code == 400 and "--max-echo-bytes" in refused.text
    # Before any of its tokens is computed.
    refused = post("/generate", {"inputs": "word " * 100_000})
    assert refused.status_code == 422 and "at least" in refused.text


def test_bodies_that_do_not_arrive_are_refused(server: Server) -> None:
    with slow_bodies(server.port, "/generate", 10) as clients:
        small(server.client)
        for client in clients:
            answer = client.read_to_end().decode()
            assert answer.startswith("HTTP/1.1 408"), answer
            assert "--client-read-timeout" in json.loads(answer.split("\r\n\r\n")[1])["error"]


def test_idle_connections_are_closed(server: Server) -> None:
    with (
        half_open_connections(server.port, 10) as half_open,
        idle_connections(server.port, 10) as used,
        idle_connections(server.port, 10, used=False) as unused,
    ):
        small(server.client)
        assert all(client.closed_within(PATIENCE_S) for client in [*half_open, *used, *unused])


def test_too_many_connections_leave_the_service_up(server: Server) -> None:
    with (
        idle_connections(server.port, MAX_CONNECTIONS * 2, used=False),
        half_open_connections(server.port, MAX_CONNECTIONS),
    ):
        assert server.client.get("/health").status_code == 200
        small(server.client)
    # All of them are sending bodies, so that none can be closed; probes are answered all the same.
    with slow_bodies(server.port, "/generate", MAX_CONNECTIONS):
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/metrics").status_code == 200
    wait_for(lambda: server.client.metric("gridwork_connections") < 10, PATIENCE_S, "they are closed")


@pytest.mark.parametrize("length", [PAYLOAD_LIMIT + 1, 40_000_000])
def test_413_is_readable_while_the_client_still_writes(server: Server, length: int) -> None:
    for path in ("/generate", "/v1/completions"):
        answer = still_writing(server.port, path, length).decode()
        assert answer.startswith("HTTP/1.1 413"), answer[:200]
        assert "connection: close" in answer and str(PAYLOAD_LIMIT) in answer


def test_giant_prompts_do_not_delay_others(server: Server) -> None:
    router = server.router()
    before = router.memory_info().rss
    with giant_prompts(server.port, 40) as clients:
        began = time.monotonic()
        for _ in range(5):
            small(server.client)
        print(f"five small requests beside 40 giant ones took {time.monotonic() - began:.2f} s")
        answered = [client for client in clients if client.has_input()]
        # Most of the giant prompts still wait, or are refused.
        answers = [client.read_to_end().decode() for client in answered]
        grown = router.memory_info().rss - before
        print(f"{len(answers)} of them were answered; the router has grown by {grown / 1e6:.0f} MB")
        assert len(answers) < len(clients)
        assert {answer.split()[1] for answer in answers} <= {"200", "429"}
        assert all("retry-after: " in answer for answer in answers if answer.split()[1] == "429")
        assert grown < 900e6


def test_unread_answers_of_tokenize_take_little_memory(server: Server) -> None:
    router = server.router()
    before = router.memory_info().rss
    text = "a b c d " * 40_000
    with unread_answers(server.port, "/tokenize", {"inputs": text}, 8) as clients:
        heads = [client.read_head() for client in clients]
        assert {status for status, _ in heads} <= {200, 429}
        small(server.client)
        grown = router.memory_info().rss - before
        print(f"eight unread answers: the router has grown by {grown / 1e6:.0f} MB")
        assert grown < 100e6
        assert all(client.closed_within(PATIENCE_S) for client in clients)
    tokens = server.client.ok("/tokenize", {"inputs": text})
    assert tokens[0]["start"] == 0 and tokens[-1]["stop"] >= len(text) - 1
    assert all(a["stop"] == b["start"] for a, b in pairwise(tokens))


def test_few_open_files_are_enough_and_errors_name_the_flags(tiny: Callable[[str], Path]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    flags = ("--model-id", tiny("llama"), "--dtype", "float32", "--max-n", 16, "--max-echo-bytes", 1000)
    # The launcher raises the limit to the hard one, so that 256 leave more than 160 connections.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        server = Server(*flags).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with ExitStack() as stack:
        stack.push(server.__exit__)
        stack.enter_context(idle_connections(server.port, 374))
        assert server.router().rlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 1 << 20)
        small(server.client)
        refuses_by_name(server)


def cached_tokens(server: Server, prompt: str, key: str, **more: object) -> int:
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, **more}
    headers = {"Authorization": f"Bearer {key}"}
    response = httpx.post(server.url + "/v1/completions", json=body, headers=headers, timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


PROMPT = "The secret of this tenant is a long sentence that nobody else has ever written before. " * 3


def test_keys_separate_cached_prompts_and_a_star_allows_any_origin(tiny: Callable[[str], Path]) -> None:
    flags = ("--dtype", "float32", "--api-key", "one,two", "--cors-allow-origin", "*")
    with Server("--model-id", tiny("llama"), *flags) as server:
        response = server.client.http.get("/health", headers={"Origin": "https://a.example"})
        assert response.headers["access-control-allow-origin"] == "*"
        assert cached_tokens(server, PROMPT, "one") == 0
        assert cached_tokens(server, PROMPT, "one") > 0
        assert cached_tokens(server, PROMPT, "two") == 0
        # The client's own salt applies in addition.
        for salt in ("0", "1", "one", "two"):
            assert cached_tokens(server, PROMPT, "two", cache_salt=salt) == 0
        assert cached_tokens(server, PROMPT, "two") > 0
        for wrong in ("on", "three", "one,two"):
            headers = {"Authorization": f"Bearer {wrong}"}
            response = server.client.post("/generate", {"inputs": "a"}, headers=headers)
            assert response.status_code == 401
        answer = still_writing(server.port, "/generate", 20_000_000).decode()
        assert answer.startswith("HTTP/1.1 401") and "connection: close" in answer


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        (("--api-key", ""), {}, "--api-key"),
        (("--api-key", "a,"), {}, "--api-key"),
        ((), {"API_KEY": ""}, "API_KEY"),
        (("--cors-allow-origin", "example.com/"), {}, "--cors-allow-origin"),
        (("--isolate-cache-by-key",), {}, "--api-key"),
    ],
)
def test_settings_that_leave_the_server_open_are_refused(
    tiny: Callable[[str], Path], flags: tuple[str, ...], env: dict[str, str], words: str
) -> None:
    server = Server("--model-id", tiny("llama"), *flags, env=env)
    server.start()
    assert server.wait_exit(60) != 0
    assert words in server.log()


def test_a_tokenizer_with_an_exponential_regex_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("llama"), folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    before = [tokenizer["pre_tokenizer"]] if tokenizer["pre_tokenizer"] else []
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, *before]}
    path.write_text(json.dumps(tokenizer))
    server = Server("--model-id", folder, "--dtype", "float32", "--max-restarts", 0)
    server.start()
    assert server.wait_exit(120) != 0
    assert "(a+)+$" in server.log() and "pre_tokenizer.pretokenizers[0]" in server.log()
