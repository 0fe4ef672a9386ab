"""Tests the batched path: tokens stay the same however sequences join, leave and are preempted."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.errors import PathError
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths.batched import BatchedPath
from gridwork_server.paths.cache_tree import CacheSnapshot, numbers_of, rebuilt, spec_of, tensors_of
from gridwork_server.step.runner import Runner

from .. import models
from ..driver import Driver

LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=100)
PROMPTS = models.prompts([23, 1, 12, 5])
COUNT = 12
SIZES: dict[str, Any] = {"vocab_size": models.VOCAB, "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0}
ATTENTION_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MIXED_LAYERS: dict[str, Any] = {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
DECODER_SIZES: dict[str, Any] = {
    "d_model": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
}

CONFIGS: dict[str, Any] = {
    "padding": lambda: transformers.GPTJConfig(
        **SIZES, n_embd=64, n_layer=3, n_head=4, rotary_dim=8, initializer_range=0.3
    ),
    "heads folded into the batch, no positions": lambda: transformers.BloomConfig(
        **SIZES, hidden_size=64, n_layer=3, n_head=4, initializer_range=0.3
    ),
    "state alone": lambda: transformers.MambaConfig(
        **SIZES, hidden_size=48, num_hidden_layers=3, state_size=8, initializer_range=0.5
    ),
    "state beside attention": lambda: transformers.JambaConfig(
        **SIZES,
        **ATTENTION_SIZES,
        **MIXED_LAYERS,
        num_experts=2,
        mamba_d_state=8,
        use_mamba_kernels=False,
        initializer_range=0.3,
    ),
    "equal lengths": lambda: transformers.BartConfig(
        **SIZES,
        **DECODER_SIZES,
        max_position_embeddings=128,
        init_std=0.3,
        is_decoder=True,
        is_encoder_decoder=False,
        forced_eos_token_id=None,
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a function from a name in CONFIGS to a folder with such a model."""

    @functools.cache
    def build(name: str) -> Path:
        folder = tmp_path_factory.mktemp("model")
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
        model.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="module")
def expected(folders: Any) -> Any:
    """Makes a function from a name in CONFIGS to the greedy continuations of PROMPTS."""

    @functools.cache
    def generate(name: str) -> list[list[int]]:
        model = transformers.AutoModelForCausalLM.from_pretrained(folders(name), dtype=torch.float32).eval()
        return [models.greedy(model, prompt, COUNT) for prompt in PROMPTS]

    return generate


def runner_for(folder: Path, **settings: Any) -> Runner:
    """A warmed-up runner in float32."""
    given: dict[str, Any] = {"model_path": folder, "socket": "", "dtype": "float32", "kv_cache_memory_bytes": 2**26}
    given["model_impl"] = "batched"
    config = ShardConfig(**(given | settings))
    group = RankGroup()
    runner = Runner(load(config, group), config, group)
    runner.num_blocks = runner.warm_up(LIMITS).num_blocks  # type: ignore[attr-defined]
    return runner


def driver_for(runner: Runner, **settings: Any) -> Driver:
    """A driver that starts without sequences."""
    runner.reset()
    return Driver(runner.run, runner.num_blocks, **settings)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CONFIGS)
def test_sequences_join_leave_and_are_preempted_without_changing_tokens(name: str, folders: Any, expected: Any) -> None:
    runner = runner_for(folders(name))
    assert runner.path.name == "batched", runner.loaded.path_reason
    driver = driver_for(runner, chunk=6)
    wanted = (COUNT, 3, 7, COUNT)
    names = []
    for prompt, count in zip(PROMPTS, wanted, strict=True):
        names.append(driver.add(prompt, count))
        driver.step()
        driver.step()
    for victim in (0, 3, 0):
        driver.preempt(names[victim])
        driver.step()
        driver.step()
    results = driver.finish()
    for number, count, tokens in zip(names, wanted, expected(name), strict=True):
        assert results[number] == tokens[:count]


def test_a_sequence_may_skip_steps(folders: Any, expected: Any) -> None:
    driver = driver_for(runner_for(folders("padding")))
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS]
    for _ in range(3):
        driver.step()
    left_out = driver.running.pop(2)
    for _ in range(3):
        driver.step()
    driver.running.append(left_out)
    results = driver.finish()
    assert [results[name] for name in names] == expected("padding")


def test_a_sequence_with_nan_logits_fails_alone(folders: Any, expected: Any) -> None:
    runner = runner_for(folders("padding"))
    used = {token for tokens in [*PROMPTS, *expected("padding")] for token in tokens}
    poison = next(token for token in range(models.VOCAB) if token not in used)
    runner.loaded.model.get_input_embeddings().weight[poison] = float("nan")  # type: ignore[operator, union-attr]
    driver = driver_for(runner)
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS]
    bad = driver.add([5, poison, 6], COUNT)
    results = driver.finish()
    assert [results[name] for name in names] == expected("padding")
    assert list(driver.failures) == [bad]


def test_prompt_logprobs_equal_plain_forward(folders: Any) -> None:
    driver = driver_for(runner_for(folders("padding")), chunk=7)
    asked = driver.add(PROMPTS[0], 2, prompt_logprobs=True)
    driver.add(PROMPTS[2], 4)
    driver.finish()
    model = transformers.AutoModelForCausalLM.from_pretrained(folders("padding"), dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0]
    logprobs = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(PROMPTS[0])[1:, None])[:, 0]
    known = driver.prompt_logprobs[asked]
    assert list(known) == list(range(1, len(PROMPTS[0])))
    torch.testing.assert_close(torch.tensor(list(known.values())), logprobs, rtol=1e-4, atol=1e-4)


def test_caches_that_no_longer_stack_are_recomputed(
    folders: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_for(folders("padding"))
    path: Any = runner.path
    driver = driver_for(runner)
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS[:2]]
    for _ in range(3):
        driver.step()

    def refuse(*_arguments: Any) -> None:
        raise ValueError("another number of tensors")

    monkeypatch.setattr(type(path._spec), "stack", refuse)
    names += [driver.add(prompt, COUNT) for prompt in PROMPTS[2:]]
    results = driver.finish()
    assert [results[name] for name in names] == expected("padding")
    assert isinstance(path, BatchedPath)
    assert path._mode == "single"


def test_states_of_more_sequences_than_fit_are_refused(folders: Any) -> None:
    with pytest.raises(Exception, match=r"states of 8 sequences.*--max-batch-size.*--kv-cache-memory"):
        runner_for(folders("state alone"), kv_cache_memory_bytes=10_000)


def cache_of(lengths: list[int], heads: int = 2) -> DynamicCache:
    """A cache of sequences of one length, with tensors `[batch, heads, length, 4]` in each layer."""
    cache = DynamicCache()
    for layer in range(2):
        parts = torch.randn(len(lengths), heads, lengths[0], 4)
        cache.update(parts, parts * 2, layer)
    return cache


def test_caches_are_stacked_and_split() -> None:
    decoded = cache_of([6])
    spec = spec_of(
        CacheSnapshot.of(cache_of([5])),
        CacheSnapshot.of(cache_of([7])),
        CacheSnapshot.of(cache_of([5, 5])),
        CacheSnapshot.of(decoded),
        5,
    )
    short, long = cache_of([3]), cache_of([9])
    members = [spec.member(tree, 0, spec.unpadded_sizes(tree)) for tree in (short, long)]
    stacked, sizes = spec.stack(members, 9)
    assert stacked.layers[0].keys.shape == (2, 2, 9, 4)
    assert stacked.layers[0].keys[0, :, :6].abs().max() == 0
    again = spec.member(stacked, 0, sizes[0])
    for one, other in zip(again.tensors, tensors_of(short), strict=True):
        torch.testing.assert_close(one, other)


def test_configs_in_a_cache_are_not_copied() -> None:
    config = transformers.GPT2Config()
    tree = {"cache": (torch.zeros(1, 2), [torch.ones(3)]), "config": config, "length": 7}
    copied = rebuilt(tree, [torch.full((1, 2), 5.0), torch.ones(3)], [9])
    assert copied["config"] is config
    assert (numbers_of(tree), numbers_of(copied)) == ([7], [9])
    assert copied["cache"][0].tolist() == [[5.0, 5.0]]
    assert tree["cache"][0].tolist() == [[0.0, 0.0]]


def test_a_cache_with_unclear_growth_is_refused() -> None:
    halves = [CacheSnapshot.of([torch.zeros(1, 2, length // 2, 4)]) for length in (5, 7, 5, 6)]
    with pytest.raises(PathError, match="one entry a token"):
        spec_of(
            halves[0],
            CacheSnapshot.of([torch.zeros(1, 2, 3, 4)]),
            CacheSnapshot.of([torch.zeros(2, 2, 2, 4)]),
            halves[0],
            5,
        )
