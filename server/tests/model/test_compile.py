"""Tests `--compile`: the same tokens as without it, and the plain model when compiling fails."""

import os
import shutil
from pathlib import Path

import pytest

from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.service.worker import Worker

from .. import models
from ..step.test_runner import driver_for, runner_for

PROMPTS = models.prompts([9, 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in place of the user's cache of compiled models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.skipif("GRIDWORK_TEST_LONG" not in os.environ, reason="compiling takes minutes where others compute too")
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "cohere"])
def test_a_compiled_model_gives_the_same_tokens(name: str, tmp_path: Path, cache: Path) -> None:
    import torch._dynamo

    # PyTorch counts compiled forms by function, and all models share a wrapper function of Transformers.
    torch._dynamo.reset()
    folder = models.save(name, tmp_path / "model", num_hidden_layers=2)
    plain = models.plain(folder)
    runner = runner_for(folder, compile=True)
    assert "compiled" in runner.loaded.notes
    driver = driver_for(runner)
    names = [driver.add(prompt, 8) for prompt in PROMPTS]
    generated = driver.finish()
    assert [generated[name] for name in names] == [models.greedy(plain, prompt, 8) for prompt in PROMPTS]
    assert list(cache.glob("gridwork/compile/*/*"))


def test_without_a_compiler_the_plain_model_is_served(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/compiler",))
    runner = runner_for(folder, compile=True)
    assert runner.path.name == "paged"
    assert "compiled" not in runner.loaded.notes
    assert "forward" not in vars(runner.loaded.model)
    driver = driver_for(runner)
    name = driver.add(PROMPTS[0], 4)
    assert driver.finish()[name] == models.greedy(models.plain(folder), PROMPTS[0], 4)


def test_compile_is_refused_for_several_shards_and_gpus(folder: Path) -> None:
    for settings in ({"world_size": 2}, {"device": "cuda"}):
        config = ShardConfig(model_path=folder, socket="", compile=True, **settings)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="one shard on --device cpu"):
            Worker(config, None)._load()
