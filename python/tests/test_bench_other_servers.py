"""`gridwork bench` on servers that know less than Gridwork, or fail: a small one that speaks OpenAI's completions."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gridwork.__main__ import main


class Other:
    """State of the server: what it got, and how it answers the request of each number."""

    def __init__(self, faults: dict[int, str], usage: bool) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.faults = faults
        self.usage = usage
        self.url = ""

    async def models(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer right":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        return web.json_response({"object": "list", "data": [{"id": "other"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if "ignore_eos" in body:
            return web.json_response({"detail": "unknown field ignore_eos"}, status=422)
        fault = self.faults.get(len(self.bodies), "")
        self.bodies.append(body)
        if fault == "refuse":
            return web.json_response({"error": {"message": "too busy"}}, status=429)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for index in range(body["max_tokens"]):
            await answer.write(b"data: " + json.dumps({"choices": [{"text": f" w{index}"}]}).encode() + b"\n\n")
            if fault == "break":
                assert request.transport is not None
                request.transport.abort()
                return answer
            if fault == "error":
                await answer.write(b'data: {"error": {"message": "out of memory"}}\n\n')
                return answer
        if self.usage:
            words = len(body["prompt"].split())
            usage = {"prompt_tokens": 2 * words + 3, "completion_tokens": 2 * body["max_tokens"]}
            await answer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        if fault != "short":
            await answer.write(b"data: [DONE]\n\n")
        return answer


@contextmanager
def other(faults: dict[int, str] | None = None, usage: bool = False) -> Iterator[Other]:
    """The server, on a thread."""
    state, loop, ready = Other(faults or {}, usage), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.add_routes([web.get("/v1/models", state.models), web.post("/v1/completions", state.complete)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        state.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/"
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait()
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def bench(state: Other, out: Path, *words: str, code: int = 0) -> dict[str, Any]:
    given = ["bench", state.url, "--api-key", "right", "--json", str(out), "--output-tokens", "4", *words]
    assert main(given) == code
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_chunks_are_counted_and_said_to_be_without_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with other() as state:
        found = bench(state, tmp_path / "out", "--num-requests", "12", "--concurrency", "5", "--warmup", "3")
    figures = found["figures"]
    assert (figures["num_requests"], figures["num_failed"], figures["output_tokens"]) == (12, 0, 48)
    assert figures["output_count"] == "chunks" and figures["prompt_tokens"] == 0
    said = capsys.readouterr().out
    assert "counted by chunks" in said and "refuses ignore_eos" in said and "counts no prompt tokens" in said
    # A first request, two for the scale, and those of the load.
    assert len(state.bodies) == 1 + 2 + 3 + 12
    assert len({body["prompt"] for body in state.bodies[3:]}) == 15
    assert all(body["model"] == "other" for body in state.bodies)


def test_usage_counts_tokens_and_gives_prompts_their_length(tmp_path: Path) -> None:
    with other(usage=True) as state:
        figures = bench(state, tmp_path / "out", "--num-requests", "6", "--input-tokens", "43")["figures"]
    # 20 words, by this server's count of tokens.
    assert figures["prompt_tokens"] == 6 * 43 and {len(body["prompt"].split()) for body in state.bodies[3:]} == {20}
    assert (figures["output_tokens"], figures["output_count"], figures["tokens_per_chunk"]) == (48, "usage", 2.0)


def test_errors_are_counted_by_kind_and_no_answer_is_lost(tmp_path: Path) -> None:
    faults = {4: "refuse", 5: "refuse", 6: "break", 7: "error", 8: "short"}
    with other(faults, usage=True) as state:
        slo = "ttft=60000 tpot=60000"
        found = bench(state, tmp_path / "out", "--num-requests", "10", "--concurrency", "1", "--slo", slo, code=1)
    figures = found["figures"]
    assert (figures["num_requests"], figures["num_failed"], figures["good_requests"]) == (10, 5, 5)
    errors = figures["errors"]
    assert errors.pop("status 429: too busy") == 2 and errors.pop("error in the stream: out of memory") == 1
    assert errors.pop("the stream ended early") == 1
    assert [kind.partition(":")[0] for kind in errors] == ["connection lost"] and sum(errors.values()) == 1


def test_an_open_loop_does_not_wait_for_answers(tmp_path: Path) -> None:
    with other(usage=True) as state:
        words = ("--rate", "400", "--num-requests", "200", "--seed", "7")
        found = bench(state, tmp_path / "out", *words)
    assert found["figures"]["num_requests"] == 200 and found["figures"]["num_failed"] == 0
    assert found["setting"]["rate_per_s"] == 400 and found["setting"]["seed"] == 7


def test_a_load_ends_after_its_time(tmp_path: Path) -> None:
    for words in (("--rate", "50"), ("--concurrency", "2")):
        with other() as state:
            figures = bench(state, tmp_path / "out", "--duration", "0.5", *words)["figures"]
        assert figures["num_requests"] > 0 and figures["num_failed"] == 0 and figures["duration_s"] >= 0.2


def test_a_server_that_cannot_be_measured_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with other() as state:
        assert main(["bench", state.url, "--api-key", "wrong"]) == 1
        assert "--api-key" in capsys.readouterr().err
        assert main(["bench", state.url, "--api-key", "right", "--json", str(tmp_path / "none/out")]) == 1
        assert "--json" in capsys.readouterr().err
        assert main(["bench", state.url, "--api-key", "right", "--api", "chat"]) == 1
        assert "/v1/chat/completions" in capsys.readouterr().err
        assert state.bodies == []
    assert main(["bench", state.url]) == 1
    assert "no server answers at" in capsys.readouterr().err
