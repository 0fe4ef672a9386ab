"""The model's thread, without a model."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gridwork_server.config import ShardConfig
from gridwork_server.service import worker as worker_module
from gridwork_server.service.worker import Worker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    worker: Any = Worker(ShardConfig(model_path=Path("none"), socket=""), None)
    worker._runner = SimpleNamespace(group=SimpleNamespace(is_leader=True))
    monkeypatch.setattr(worker, "_load", lambda: None)
    worker.start()
    yield worker
    # The worker has exempted all objects from garbage collection.
    gc.unfreeze()


def test_a_call_cancelled_while_it_waits_does_not_run_and_later_ones_do(worker: Worker) -> None:
    go, ran = threading.Event(), []
    first = worker.call(lambda _runner: go.wait(10))
    second = worker.call(lambda _runner: ran.append("second"))
    assert second.cancel()
    go.set()
    assert worker.call(lambda _runner: "third").result(10) == "third"
    assert first.result(10)
    assert ran == []


def test_a_call_that_has_begun_cannot_be_cancelled(worker: Worker) -> None:
    begun, go = threading.Event(), threading.Event()

    def task(_runner: Any) -> str:
        begun.set()
        go.wait(10)
        return "done"

    future = worker.call(task)
    assert begun.wait(10)
    assert not future.cancel()
    go.set()
    assert future.result(10) == "done"


def test_a_failing_call_raises_its_error_and_later_ones_run(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda _runner: 1 // 0).result(10)
    assert worker.call(lambda _runner: "next").result(10) == "next"


def test_an_error_outside_of_calls_ends_the_process(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the thread would end, and the shard would look healthy and never answer."""
    ended = threading.Event()
    reasons: list[str] = []

    def end(message: str) -> None:
        reasons.append(message)
        ended.set()

    monkeypatch.setattr(worker_module, "end_process", end)
    worker._tasks.put(lambda: [][0])
    assert ended.wait(10)
    assert "IndexError" in reasons[0]
