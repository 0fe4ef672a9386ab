"""Start, signals, logs and end of the launcher. No child outlives it."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from support.client import events_of
from support.paths import GRIDWORK
from support.server import Server, child_environment, wait_for

TinyModels = Callable[[str], Path]


@pytest.mark.parametrize("num_shard", [1, 2])
def test_no_process_survives_a_killed_launcher(tiny: TinyModels, num_shard: int) -> None:
    with Server("--model-id", tiny("llama"), "--dtype", "float32", "--num-shard", num_shard) as server:
        assert len(server.shards()) == num_shard
        assert server.router()
        server.ends_by_itself()
        os.kill(server.pid, signal.SIGKILL)
        server.assert_nothing_survives(within_s=5)


def test_no_process_survives_a_launcher_killed_while_loading(tiny: TinyModels) -> None:
    server = Server("--model-id", tiny("llama"), "--dtype", "float32")
    server.start()
    wait_for(lambda: len(server.note_family()) >= 2, 10, "the children run")
    os.kill(server.pid, signal.SIGKILL)
    server.assert_nothing_survives(within_s=5)
    server.kill()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_streams_end_and_refuses_new_ones(trap: Path, signal_number: int) -> None:
    with Server("--model-id", trap, "--dtype", "float32", "--trust-remote-code") as server:
        server.ends_by_itself()
        body = {"inputs": "The boats", "parameters": {"max_new_tokens": 120, "details": True}}
        with server.client.http.stream("POST", "/generate_stream", json=body) as response:
            events = events_of(response)
            got = [next(events) for _ in range(10)]
            os.kill(server.pid, signal_number)
            wait_for(lambda: not server.is_healthy(), 5, "/health says that it is draining")
            refused = None
            try:
                refused = httpx.post(server.url + "/generate", json={"inputs": "more"}, timeout=5, trust_env=False)
            except httpx.HTTPError:
                pass
            assert refused is None or refused.status_code == 503, refused.text
            got.extend(events)
        assert len(got) == 120
        assert got[-1]["details"]["finish_reason"] == "length"
        assert server.wait_exit() == 0, server.log_tail()
        server.assert_nothing_survives()


def test_streams_that_exceed_the_shutdown_timeout_are_cut_off(trap: Path) -> None:
    with Server(
        *("--model-id", trap, "--dtype", "float32", "--trust-remote-code", "--graceful-termination-timeout", 2)
    ) as server:
        server.ends_by_itself()
        body = {"inputs": "The boats", "parameters": {"max_new_tokens": 1000}}
        with server.client.http.stream("POST", "/generate_stream", json=body) as response:
            events = events_of(response)
            next(events)
            started = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            assert server.wait_exit(timeout_s=20) == 0, server.log_tail()
            assert 1.5 < time.monotonic() - started < 10
        server.assert_nothing_survives()


def test_a_signal_while_loading_ends_it_at_once(tiny: TinyModels) -> None:
    server = Server("--model-id", tiny("llama"), "--dtype", "float32")
    server.start()
    wait_for(lambda: len(server.note_family()) >= 2, 10, "the children run")
    started = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    code = server.wait_exit(timeout_s=15)
    assert code == 0, server.log_tail()
    assert time.monotonic() - started < 10
    server.assert_nothing_survives()
    server.kill()


def test_health_is_503_until_the_model_is_loaded(tiny: TinyModels) -> None:
    server = Server("--model-id", tiny("llama"), "--dtype", "float32")
    server.start()
    try:
        seen = []

        def poll() -> bool:
            try:
                seen.append(httpx.get(server.url + "/health", timeout=5, trust_env=False).status_code)
            except httpx.HTTPError:
                return False
            return seen[-1] == 200

        wait_for(poll, 120, "ready")
        assert set(seen) == {200, 503}
        server.note_family()
        server.stop()
    finally:
        server.kill()


def test_livez_is_200_while_a_shard_restarts_and_while_draining(trap: Path) -> None:
    def ask(path: str) -> int:
        return httpx.get(server.url + path, timeout=5, trust_env=False).status_code

    with Server("--model-id", trap, "--dtype", "float32", "--trust-remote-code") as server:
        assert (ask("/livez"), ask("/health")) == (200, 200)
        server.shards()[0].kill()
        wait_for(lambda: ask("/health") == 503, 10, "/health is 503")
        assert ask("/livez") == 200
        assert server.client.metric("gridwork_shard_ready") == 0
        server.wait_ready()
        body = {"inputs": "The boats", "parameters": {"max_new_tokens": 200}}
        with server.client.http.stream("POST", "/generate_stream", json=body) as response:
            events = events_of(response)
            next(events)
            os.kill(server.pid, signal.SIGTERM)
            wait_for(lambda: ask("/health") == 503, 10, "/health is 503")
            assert ask("/livez") == 200
            last = list(events)[-1]
            assert last["generated_text"] is not None and "error" not in last
        server.ends_by_itself()
        assert server.wait_exit(timeout_s=20) == 0, server.log_tail()


def test_a_dead_shard_is_restarted_while_idle(tiny: TinyModels) -> None:
    with Server("--model-id", tiny("llama"), "--dtype", "float32") as server:
        first = server.shards()[0]
        before = server.client.generate("The boats", max_new_tokens=8)
        first.kill()
        wait_for(lambda: server.shards() != [] and server.shards()[0].pid != first.pid, 30, "a new shard")
        server.wait_ready()
        assert server.client.generate("The boats", max_new_tokens=8).token_ids == before.token_ids
        assert server.client.metric("gridwork_cache_blocks_used") == 0


def test_logs_of_all_processes_are_tagged(trap: Path) -> None:
    with Server("--model-id", trap, "--dtype", "float32", "--trust-remote-code") as server:
        server.client.generate("hi", max_new_tokens=1)
        log = server.log()
    assert "router" in log
    assert "shard" in log
    assert "tokens" in log  # the size of the cache is said in tokens


def test_json_output_is_one_object_a_line(trap: Path) -> None:
    with Server("--model-id", trap, "--dtype", "float32", "--trust-remote-code", "--json-output") as server:
        server.client.generate("hi", max_new_tokens=1)
    entries = [json.loads(line) for line in server.lines if line.strip()]
    assert len(entries) > 3
    for entry in entries:
        assert {"timestamp", "level", "message"} <= set(entry), entry
    text = json.dumps(entries)
    assert "router" in text and "shard" in text


def test_the_api_key_is_required_and_never_shown(tiny: TinyModels) -> None:
    key = "correct-horse-battery-staple"
    with Server("--model-id", tiny("llama"), "--dtype", "float32", "--api-key", key) as server:
        client = server.client
        body = {"prompt": "hi", "max_tokens": 1}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {key.upper()}"}):
            refused = client.post("/v1/completions", body, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["message"]
        assert client.post("/v1/completions", body, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        for process in server.note_family():
            assert key not in " ".join(process.cmdline())
        assert key not in server.log()


def test_flags_are_environment_variables_too(tiny: TinyModels) -> None:
    env = {"MODEL_ID": str(tiny("llama")), "DTYPE": "float32", "MAX_CONCURRENT_REQUESTS": "7"}
    with Server(env=env) as server:
        assert server.client.get("/info").json()["max_concurrent_requests"] == 7


def test_the_socket_is_removed_at_the_end(tiny: TinyModels) -> None:
    with Server("--model-id", tiny("llama"), "--dtype", "float32") as server:
        command = server.shards()[0].cmdline()
        socket_path = Path(command[command.index("--socket") + 1])
        assert socket_path.exists()
    assert not socket_path.exists()


def test_help_is_grouped_and_names_every_variable() -> None:
    text = subprocess.run(
        [str(GRIDWORK), "--help"], capture_output=True, text=True, env=child_environment(), check=True, timeout=10
    ).stdout
    for flag in (
        "--model-id",
        "--num-shard",
        "--dtype",
        "--device",
        "--model-impl",
        "--port",
        "--otlp-endpoint",
        "--json-output",
    ):
        assert flag in text
    assert "[env: MODEL_ID" in text
    assert text.count(":\n") >= 4  # headings of groups


def test_two_servers_run_at_the_same_time(tiny: TinyModels) -> None:
    flags = ("--model-id", tiny("llama"), "--dtype", "float32")
    with Server(*flags) as one, Server(*flags) as other:
        answers = [server.client.generate("The boats", max_new_tokens=8).token_ids for server in (one, other)]
        assert answers[0] == answers[1]


def test_health_answers_during_a_long_prefill(trap: Path) -> None:
    with Server(
        "--model-id", trap, "--dtype", "float32", "--trust-remote-code", "--max-batch-prefill-tokens", 16
    ) as server:
        body = {"inputs": "boat " * 400, "parameters": {"max_new_tokens": 2}}
        asking = threading.Thread(target=lambda: server.client.ok("/generate", body))
        asking.start()
        slowest = 0.0
        while asking.is_alive():
            started = time.monotonic()
            assert server.client.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 1.0
