"""Fixtures of the black-box tests. Models are made once a session; servers are shared where no test ends them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from support import encoders, models, reciter
from support.paths import MINILM, SMOLLM2
from support.server import Server


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct."""
    if not (SMOLLM2 / "model.safetensors").exists():
        pytest.fail(f"{SMOLLM2} is missing; run `make build`", pytrace=False)
    return SMOLLM2


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    if not (MINILM / "model.safetensors").exists():
        pytest.fail(f"{MINILM} is missing; run `make encoder-model`", pytrace=False)
    return MINILM


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a tiny random model by its family's name."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = models.build(family, root / f"tiny-{family}")
        return made[family]

    return folder


@pytest.fixture(scope="session")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with custom code that misbehaves at certain tokens and takes 20 ms a step."""
    return models.trap_model(tmp_path_factory.mktemp("trap") / "tiny-trap", step_delay_s=0.02)


@pytest.fixture(scope="module")
def smollm2_server(smollm2: Path) -> Iterator[Server]:
    """SmolLM2 in float32, for all tests of a module."""
    with Server("--model-id", smollm2, "--dtype", "float32", "--max-concurrent-requests", "256") as server:
        yield server


@pytest.fixture(scope="module")
def tiny_server(tiny: Callable[[str], Path]) -> Iterator[Server]:
    """A tiny random Llama, for tests that do not read its answers."""
    with Server("--model-id", tiny("llama"), "--dtype", "float32", "--max-concurrent-requests", "256") as server:
        yield server


@pytest.fixture(scope="module")
def reciting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny model that recites tool calls and answers, for whole conversations of client libraries."""
    folder = reciter.build(tmp_path_factory.mktemp("reciter") / "tiny-reciter")
    with Server("--model-id", folder, "--dtype", "float32") as server:
        yield server


@pytest.fixture(scope="module")
def minilm_server(minilm: Path) -> Iterator[Server]:
    """A sentence encoder."""
    with Server("--model-id", minilm) as server:
        yield server


@pytest.fixture(scope="module")
def reranker_server(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny reranker with random weights."""
    folder = encoders.classifier(tmp_path_factory.mktemp("reranker") / "tiny", minilm, ["relevance"])
    with Server("--model-id", folder) as server:
        yield server
