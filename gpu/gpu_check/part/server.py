"""Part 6: the real launcher, router and shard with a random Llama, 64 clients, and `kill -9` of the shard."""

import itertools
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

from support.models import build
from support.paths import GRIDWORK
from support.reference import Case, cases
from support.server import Server, wait_for

from gpu_check.part.context import Context, Refused, one_line

_READY_TARGET_S = 10.0
_READY_TIMEOUT_S = 90.0
_HARD_KILL_TIMEOUT_S = 60.0


def run(context: Context) -> None:
    """Compares all answers with `generate()` on the CPU: without a fault, then around the shard's death."""
    if not GRIDWORK.exists():
        raise Refused(f"there is no launcher at {GRIDWORK}; bring a pack along, or run `make build`")
    number, prompt, answer = (6, 40, 120) if context.tiny else (64, 600, 200)
    with tempfile.TemporaryDirectory() as folder:
        known = cases(build("llama", Path(folder) / "llama"), number, prompt, answer)
        context.fact("clients", len(known))
        flags = ("--model-id", Path(folder) / "llama", "--dtype", "float32", "--device", context.device.type)
        server = Server(*flags, "--kv-cache-memory", "1GiB")
        try:
            server.start()
            server.wait_ready(min(_READY_TIMEOUT_S, context.left_s))
            _check(context, server, known)
            with context.checking("SIGTERM ends all processes with exit code 0"):
                server.stop()
        except BaseException:
            server.kill()
            raise
        finally:
            (context.folder / f"{context.label}-server.log").write_text(server.log())


def _check(context: Context, server: Server, known: list[Case]) -> None:
    context.figure(
        "ready after, with a tiny model",
        server.ready_after_s,
        "s",
        f"at most {_READY_TARGET_S:.0f} s",
        server.ready_after_s <= _READY_TARGET_S,
    )
    info = server.client.get("/info").json()
    for name in ("model_impl", "model_impl_reason", "attention", "device"):
        if info.get(name):
            context.fact(name, info[name])
    first = known[0]
    with context.checking("one request gives the tokens of generate()"):
        answer = server.client.generate(first.prompt, max_new_tokens=first.max_new_tokens)
        assert answer.token_ids == list(first.token_ids), f"{answer.token_ids} is not {list(first.token_ids)}"
    calm = Clients(server, known)
    calm.start()
    calm.finish(context.left_s)
    context.check(f"{len(known)} clients get the tokens of generate()", calm.problem())
    context.figure("output of a tiny model, all clients", calm.tokens / calm.seconds, "tokens/s")
    if context.has_time("kill -9 of the shard", 15):
        _kill(context, server, known)


def _kill(context: Context, server: Server, known: list[Case]) -> None:
    """Kills the shard in the middle of all streams. Each must go on with the next token."""
    clients = Clients(server, known)
    total = sum(len(case.token_ids) for case in known)
    clients.start()
    wait_for(lambda: clients.tokens > total // 10, 60, "a tenth of all tokens has come")
    running = clients.num_running
    shard = server.shards()[0]
    killed_at = time.monotonic()
    os.kill(shard.pid, signal.SIGKILL)
    clients.finish(min(_HARD_KILL_TIMEOUT_S, context.left_s))
    context.check("streams were running when the shard was killed", "" if running else "all had ended")
    context.check(f"{running} running of {len(known)} clients lose no token by kill -9 of the shard", clients.problem())
    with context.checking("the shard was restarted once, and no block stays in use"):
        wait_for(lambda: server.client.metric("gridwork_cache_blocks_used") == 0, 10, "no block is in use")
        restarts = server.client.metric("gridwork_shard_restarts_total")
        assert restarts == 1, f"{restarts:.0f} restarts"
    if clients.first_after(killed_at) is not None:
        context.figure("longest pause of a stream by kill -9", clients.longest_pause_s, "s")


class Clients:
    """Streams of all cases at once, each in a thread."""

    def __init__(self, server: Server, known: list[Case]) -> None:
        self._server, self._known = server, known
        self._got: list[list[int]] = [[] for _ in known]
        self._times: list[list[float]] = [[] for _ in known]
        self._errors: dict[int, str] = {}
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(len(known))]
        self._started = self._ended = 0.0

    def start(self) -> None:
        """Starts all streams."""
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def finish(self, within_s: float) -> None:
        """Waits for all streams. Streams that have not ended in time are errors."""
        deadline = time.monotonic() + within_s
        for index, thread in enumerate(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._errors[index] = f"no end within {within_s:.0f} s"
        self._ended = time.monotonic()

    @property
    def tokens(self) -> int:
        """Number of tokens that all streams have so far."""
        return sum(map(len, self._got))

    @property
    def seconds(self) -> float:
        """Time from the start to the end of all streams."""
        return self._ended - self._started

    @property
    def num_running(self) -> int:
        """Number of streams that have not ended."""
        return sum(thread.is_alive() for thread in self._threads)

    @property
    def longest_pause_s(self) -> float:
        """Longest time between two tokens of one stream."""
        return max((b - a for times in self._times for a, b in itertools.pairwise(times)), default=0.0)

    def first_after(self, moment: float) -> float | None:
        """Time of the first token after a moment."""
        return min((each for times in self._times for each in times if each > moment), default=None)

    def problem(self) -> str:
        """The streams whose tokens are not the known ones, or nothing."""
        wrong = []
        for index, (case, got) in enumerate(zip(self._known, self._got, strict=True)):
            if index in self._errors:
                wrong.append(f"client {index}: {self._errors[index]} (after {len(got)} tokens)")
            elif got != list(case.token_ids):
                same = next((i for i, (a, b) in enumerate(zip(got, case.token_ids, strict=False)) if a != b), len(got))
                wrong.append(f"client {index}: {len(got)} of {len(case.token_ids)} tokens, other ones from {same} on")
        return f"{len(wrong)} of {len(self._known)} are wrong: {'; '.join(wrong[:3])}" if wrong else ""

    def _run(self, index: int) -> None:
        case = self._known[index]
        parameters = {"max_new_tokens": case.max_new_tokens, "details": True}
        try:
            for event in self._server.client.stream(
                "/generate_stream", {"inputs": case.prompt, "parameters": parameters}
            ):
                if "error" in event:
                    raise RuntimeError(event["error"])
                assert event["index"] == len(self._got[index]) + 1, f"index {event['index']} is not the next one"
                self._got[index].append(event["token"]["id"])
                self._times[index].append(time.monotonic())
        except Exception as error:
            self._errors[index] = one_line(error)
