"""Faults of a server that embeds texts."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from support.models import CONTEXT_TOKENS, VOCAB_SIZE, tokenizer_file
from support.server import Server
from transformers import AutoModel, BertConfig

from .faults import Faults, Row, Scene
from .traffic import Costs

FAULTS = Faults()

TEXTS = [f"the boats of harbour {number} are past" for number in range(8)]


def tiny_encoder(folder: Path) -> Path:
    """A random BERT."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    config = BertConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=CONTEXT_TOKENS, initializer_range=0.4, **sizes)
    tokenizer_file(folder)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def _embed(server: Server) -> list[list[float]]:
    body = {"inputs": TEXTS, "normalize": False}
    response = httpx.post(server.url + "/embed", json=body, timeout=120, trust_env=False)
    assert response.status_code == 200, f"{response.status_code} {response.text}"
    vectors: list[list[float]] = response.json()
    return vectors


class _Askers:
    """Three clients that send requests until they are stopped."""

    def __init__(self, server: Server, right: list[list[float]], may_be_cut: bool) -> None:
        self.server, self.right, self.may_be_cut = server, right, may_be_cut
        self.costs = Costs()
        self.num_answers = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(3)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(130)
            self.costs.add("lost", int(thread.is_alive()), "no answer in 130 s")

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                vectors = _embed(self.server)
            except (httpx.HTTPError, AssertionError) as error:
                if self.may_be_cut and (isinstance(error, httpx.HTTPError) or str(error).startswith("503")):
                    time.sleep(0.3)
                else:
                    self.costs.add("lost", 1, f"{type(error).__name__}: {error}")
                continue
            self.num_answers += 1
            self.costs.add("wrong", int(not _alike(vectors, self.right)), "another vector")


def _alike(one: list[list[float]], other: list[list[float]]) -> bool:
    a, b = torch.tensor(one), torch.tensor(other)
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-3, atol=1e-4))


def run(server: Server) -> list[Row]:
    """Runs all faults, each beside three clients."""
    right = _embed(server)
    scene = Scene(server, None, [], Path())
    rows = []
    for fault in FAULTS.all:
        askers = _Askers(server, right, fault.cuts_connections)
        row = Row(fault.name, askers.costs)
        askers.start()
        try:
            fault.inject(scene)
        except Exception as error:
            row.failure = f"{type(error).__name__}: {error}"
        began, answers = time.monotonic(), askers.num_answers
        while askers.num_answers == answers and time.monotonic() - began < 60:
            time.sleep(0.05)
        if askers.num_answers > answers:
            row.recovered_s = round(time.monotonic() - began, 1)
        askers.finish()
        rows.append(row)
    return rows


FAULTS.restart("encoder: kill -9 of the shard", Scene.shard_ids, signal.SIGKILL)
FAULTS.restart("encoder: SIGSTOP of the shard", Scene.shard_ids, signal.SIGSTOP)
FAULTS.restart("encoder: kill -9 of the router", Scene.router_ids, signal.SIGKILL, cuts_connections=True)


@FAULTS.add("encoder: texts of 1 MB")
def _(scene: Scene) -> None:
    for truncate in [False, True] * 4:
        body = {"inputs": ["boat " * 200_000], "truncate": truncate}
        response = httpx.post(scene.server.url + "/embed", json=body, timeout=60, trust_env=False)
        assert response.status_code == (200 if truncate else 413), response.text[:200]
