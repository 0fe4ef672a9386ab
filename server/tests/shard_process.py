"""Real shard processes, driven over gRPC."""

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server._proto import shard_pb2_grpc as pb_grpc
from gridwork_server.config import ShardConfig

_READERS = ThreadPoolExecutor(4)


def free_port() -> int:
    """Finds a TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def settings_json(model: Path, **settings: Any) -> str:
    """Settings as the launcher writes them: the defaults, a small cache and one thread, but for `settings`."""
    defaults = asdict(ShardConfig(model, "", kv_cache_memory_bytes=1 << 24, cpu_threads=1))
    given = {name: value for name, value in defaults.items() if name not in ("rank", "socket")}
    return json.dumps(given | settings, default=str)


class ShardProcess:
    """A process of `gridwork-server serve`."""

    def __init__(self, model: Path, address: str, rank: int = 0, **settings: Any) -> None:
        """Starts the process. address: path of a unix socket, or host:port. settings: fields of ShardConfig."""
        text = settings_json(model, **settings)
        self._settings = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115 - removed when this is
        self._settings.write(text)
        self._settings.flush()
        command = [sys.executable, "-m", "gridwork_server", "serve", "--settings", self._settings.name]
        self.process = subprocess.Popen(
            [*command, "--rank", str(rank), "--socket", address],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.channel = grpc.insecure_channel(address if ":" in address else f"unix:{address}")
        self.stub = pb_grpc.ShardStub(self.channel)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(line.rstrip("\n") for line in self.process.stderr)

    def wait_ready(self, timeout_s: float = 60) -> "ShardProcess":
        """Waits until the model is loaded."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "\n".join(self.lines)
            try:
                health = self.stub.Health(pb.HealthRequest(), timeout=5)
            except grpc.RpcError:
                health = pb.HealthResponse()
            if health.state == pb.HealthResponse.STATE_READY:
                return self
            time.sleep(0.05)
        raise TimeoutError("\n".join(self.lines))

    def wait_end(self, timeout_s: float = 60) -> int:
        """Waits for the process to end by itself. Returns its exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code

    def fatal(self) -> str:
        """Reason that the process logged for its end."""
        records = [json.loads(line) for line in self.lines]
        return "\n".join(record["message"] for record in records if record.get("fatal"))

    def kill(self) -> None:
        """Ends the process at once."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


class Stream:
    """A Run stream that is written to and read from step by step."""

    def __init__(self, shard: ShardProcess) -> None:
        self._steps: queue.SimpleQueue[pb.Step | None] = queue.SimpleQueue()
        self._call: Any = shard.stub.Run(iter(self._steps.get, None), timeout=100)
        self._next: Future[pb.StepResult] | None = None

    def send(self, step: pb.Step) -> None:
        """Sends a step."""
        self._steps.put(step)

    def receive(self) -> pb.StepResult:
        """Waits for the next result."""
        if self._next is None:
            return next(self._call)
        future, self._next = self._next, None
        return future.result()

    def arrived(self) -> bool:
        """Returns whether a result can be read without waiting."""
        if self._next is None:
            self._next = _READERS.submit(next, self._call)
        return self._next.done()

    def run(self, step: pb.Step) -> pb.StepResult:
        """Sends a step and waits for its result."""
        self.send(step)
        return self.receive()

    def close(self) -> list[pb.StepResult]:
        """Ends the stream. Returns the results that were not read."""
        self._steps.put(None)
        return list(self._call)

    def cancel(self) -> None:
        """Cancels the stream."""
        self._call.cancel()


@contextmanager
def shards(model: Path, folder: Path, world_size: int = 1, **settings: Any) -> Iterator[list[ShardProcess]]:
    """Starts a group of shards, not yet ready. They are killed at the end of the context.

    settings: fields of ShardConfig.
    """
    port = free_port()
    group = [
        ShardProcess(
            model,
            str(folder / f"{rank}.sock"),
            rank,
            **{"world_size": world_size, "master_port": port} | settings,
        )
        for rank in range(world_size)
    ]
    try:
        yield group
    finally:
        for shard in group:
            shard.kill()
