"""Models with recurrent states on the paged path: tokens are those of `generate()`, however steps are made up."""

import functools
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.errors import LimitError
from gridwork_server.recurrent.operations import KINDS, Recurrence, StateKey
from gridwork_server.recurrent.pool import StateGeometry, StatePool, state_layout

from .. import models
from ..driver import Driver
from ..runners import SizedRunner, driver_for, load_runner

LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=6, max_total_tokens=100)
PROMPTS = models.prompts([23, 1, 12, 5, 9, 31])
COUNT = 12
needs_kernels = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a function from a name to a folder with such a model."""
    return functools.cache(lambda name: models.save(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def expected(folders: Any) -> Any:
    """Makes a function from a name to the greedy continuations of PROMPTS."""

    @functools.cache
    def generate(name: str) -> list[list[int]]:
        model = models.plain(folders(name))
        return [models.greedy(model, prompt, COUNT) for prompt in PROMPTS]

    return generate


@pytest.fixture(scope="module")
def runners(folders: Any) -> Any:
    """Makes a function from a name, and whether operations are recorded, to a runner."""
    return functools.cache(lambda name, fuse=True: load_runner(folders(name), LIMITS, fuse=fuse))


def finish(driver: Driver) -> None:
    while driver.running:
        driver.step()


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", models.HYBRIDS)
def test_greedy_tokens_are_those_of_generate(name: str, fuse: bool, runners: Any, expected: Any) -> None:
    runner: SizedRunner = runners(name, fuse)
    assert runner.path.name == "paged" and runner.loaded.path_reason == ""
    assert runner.path.is_recorded == (fuse and cpu_attention.supports(torch.float32))
    for chunk in (1000, 3):
        driver = driver_for(runner, chunk=chunk, max_sequences=6)
        names = [driver.add(prompt, COUNT) for prompt in PROMPTS]
        finish(driver)
        assert [driver.finished[name].generated for name in names] == expected(name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", models.HYBRIDS)
def test_tokens_do_not_depend_on_joining_leaving_and_preemption(
    name: str, seed: int, runners: Any, expected: Any
) -> None:
    generator = random.Random(seed)
    driver = driver_for(runners(name), chunk=generator.choice((2, 5, 16)), max_sequences=4, seed=seed)
    waiting = list(range(len(PROMPTS))) * 2
    generator.shuffle(waiting)
    number: dict[int, int] = {}
    while waiting or driver.running:
        while waiting and len(driver.running) < 3 and generator.random() < 0.6:
            which = waiting.pop()
            number[driver.add(PROMPTS[which], generator.randint(1, COUNT))] = which
        if driver.running and generator.random() < 0.2:
            driver.preempt(generator.choice(driver.running).name)
        driver.step()
    for added, which in number.items():
        generated = driver.finished[added].generated
        assert generated == expected(name)[which][: len(generated)] != []


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a function from a name to a runner of a model whose layers are all wide enough for our kernels."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    heads = {
        "granitemoehybrid": {"mamba_n_heads": 8},
        "falcon_h1": {"mamba_n_heads": 8, "mamba_d_ssm": 128},
        "mamba2": {"num_heads": 8},
    }

    @functools.cache
    def build(name: str) -> SizedRunner:
        folder = models.save(name, tmp_path_factory.mktemp(name), **sizes, **heads.get(name, {}))
        return load_runner(folder, LIMITS, dtype="bfloat16")

    return build


NATIVE = ("granitemoehybrid", "lfm2")


@needs_kernels
@pytest.mark.parametrize("name", [*NATIVE, "mamba2", "qwen3_5", "falcon_h1"])
def test_logits_are_the_same_to_the_bit_however_a_prompt_is_cut(name: str, wide: Any) -> None:
    runner = wide(name)
    assert runner.info().replay_invariant and runner.info().batch_invariant
    results = []
    for chunk, beside in ((1000, 0), (1, 0), (7, 3)):
        driver = driver_for(runner, chunk=chunk, max_sequences=6)
        driver.add(PROMPTS[0], COUNT, top_n=3)
        for prompt in PROMPTS[1 : 1 + beside]:
            driver.add(prompt, COUNT // 2)
        finish(driver)
        results.append([list(result.top_logprobs) for result in driver.results if result.top_logprobs])
    assert results[0] == results[1] == results[2] and len(results[0]) == COUNT


@needs_kernels
@pytest.mark.parametrize("name", NATIVE)
def test_a_step_is_one_call(name: str, wide: Any) -> None:
    assert wide(name).path._recorded._for_all_rows.num_calls == 1


def test_what_a_state_cannot_do_is_refused(runners: Any, folders: Any) -> None:
    info = runners("lfm2").info()
    assert not info.shares_blocks and info.draft_step_tokens == 0
    limits = pb.WarmupRequest()
    limits.CopyFrom(LIMITS)
    limits.prefix_cache = True
    with pytest.raises(LimitError, match="no prefix cache"):
        runners("lfm2").warm_up(limits)
    needed = runners("mamba2").path.needs.bytes_per_sequence
    assert needed == sum(tensor[0].nbytes for tensor in runners("mamba2").path._pool.tensors.values()) > 0
    with pytest.raises(LimitError, match=r"states of 6 sequences .* --max-batch-size"):
        load_runner(folders("mamba2"), LIMITS, kv_cache_memory_bytes=5 * needed)


def test_a_layer_with_a_function_of_its_own_is_not_paged(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["transformers.models.lfm2.modeling_lfm2"]
    plain = getattr(module.causal_conv1d_fn, "_gridwork_replaces", module.causal_conv1d_fn)

    def twice(hidden_states: Any, weight: Any, bias: Any = None, activation: Any = None, **kwargs: Any) -> Any:
        return 2 * plain(hidden_states, weight, bias, activation=activation, **kwargs)

    monkeypatch.setattr(module, "causal_conv1d_fn", twice)
    runner = load_runner(folders("lfm2"), LIMITS)
    assert runner.path.name != "paged"
    assert "layer 0 computes its convolution by code of its own" in runner.loaded.path_reason


def test_a_slot_begins_anew() -> None:
    key, operation = StateKey(0, 0, True, 0), Recurrence("causal_conv", (False,))
    x, weight = torch.rand(3, 5), torch.rand(5, 4)
    shape, dtype = KINDS["causal_conv"].state(x, weight)
    pool = StatePool({key: StateGeometry(shape, dtype)}, 2, torch.device("cpu"))
    pool.tensors[key].fill_(torch.nan)
    layout = state_layout(np.array([1]), np.array([3]), np.array([0, 1, 2]), torch.device("cpu"))
    out = pool.recur(key, operation, (x, weight, None), layout)
    assert out.isfinite().all() and pool.tensors[key][1].isfinite().all() and pool.tensors[key][0].isnan().all()
