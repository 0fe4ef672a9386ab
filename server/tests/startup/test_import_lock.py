"""Tests that a shard's threads take turns in importing and loading."""

import threading
from pathlib import Path

import pytest

from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.prepare import tokenizer
from gridwork_server.service.text_tokenizer import TextTokenizerService
from gridwork_server.service.worker import Worker
from gridwork_server.startup import import_lock


def test_a_tokenizer_waits_for_the_import_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda *_arguments: object())
    service = TextTokenizerService(ShardConfig(model_path=tmp_path, socket=""))
    with import_lock.LOCK:
        service.start()
        assert not service._loaded.wait(0.2)
    assert service._loaded.wait(10)


def test_a_model_waits_for_the_import_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loads, reasons = threading.Event(), []

    def load(_worker: Worker) -> None:
        loads.set()
        raise ModelError("enough")

    monkeypatch.setattr(Worker, "_load", load)
    monkeypatch.setattr(Worker, "_fail", lambda _worker, reason: reasons.append(reason))
    worker = Worker(ShardConfig(model_path=tmp_path, socket=""), None)
    with import_lock.LOCK:
        worker.start()
        assert not loads.wait(0.2)
    assert loads.wait(10)
    worker._thread.join(10)
    assert reasons == ["enough"]
