"""Models with Python code of their own, on the shard's runner: the tokens of their own forward(), and no code without
trust."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.errors import ModelError
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.step.runner import Runner
from support import custom_models
from tests.driver import Driver

from conformance.generation import shard_config

PROMPTS = [[5, 17, 200, 31, 8, 444, 3, 90], [77], [12, 13, 14, 15, 600], list(range(100, 121))]
COUNT = 12
LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=100)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a habit's model."""
    root = tmp_path_factory.mktemp("custom")
    return functools.cache(lambda habit: custom_models.build(habit, root / habit))


@pytest.fixture(scope="module")
def expected(folders: Callable[[str], Path]) -> Callable[[str], list[list[int]]]:
    """Returns a habit's greedy answers to PROMPTS by plain forward()."""

    @functools.cache
    def answers(habit: str) -> list[list[int]]:
        model = custom_models.plain(folders(habit))
        return [custom_models.greedy(model, prompt, COUNT) for prompt in PROMPTS]

    return answers


def loaded(folder: Path, **settings: Any) -> Runner:
    """The shard's own runner, in float32."""
    config = shard_config(folder, **({"trust_remote_code": True} | settings))
    group = RankGroup()
    return Runner(load(config, group), config, group)


#: Habits that the paged path allows. The others must run on another path.
PAGED = ("contract", "drops_kwargs", "python_tokenizer")


@pytest.mark.parametrize("habit", custom_models.HABITS)
def test_batched_prompts_give_the_tokens_of_forward(
    habit: str, folders: Callable[[str], Path], expected: Callable[[str], list[list[int]]]
) -> None:
    runner = loaded(folders(habit))
    assert (runner.loaded.path.name == "paged") == (habit in PAGED), runner.loaded.path_reason
    assert bool(runner.loaded.path_reason) == (habit not in PAGED)
    driver = Driver(runner.run, runner.warm_up(LIMITS).num_blocks, chunk=6)
    names = []
    for prompt in PROMPTS:
        names.append(driver.add(prompt, COUNT))
        driver.step()  # so that sequences join running ones
    results = driver.finish()
    assert [results[name] for name in names] == expected(habit)


@pytest.mark.parametrize("habit", [name for name, habit in custom_models.HABITS.items() if habit.config_class])
def test_a_shard_without_trust_refuses_and_names_the_file(
    habit: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = custom_models.marked(folders(habit), tmp_path)
    with pytest.raises(ModelError, match=r"config\.json needs its own Python code.*--trust-remote-code"):
        loaded(folder, trust_remote_code=False)
    assert not (tmp_path / "has-run").exists()
    loaded(folder)
    assert (tmp_path / "has-run").exists()


@pytest.mark.parametrize("place", custom_models.REFERENCES)
def test_code_named_by_a_part_of_the_model_does_not_run_without_trust(
    place: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = custom_models.marked(folders("nested_relative"), tmp_path)
    custom_models.refer_from(place, folder)
    with pytest.raises(ModelError):
        loaded(folder, trust_remote_code=False)
    assert not (tmp_path / "has-run").exists()
