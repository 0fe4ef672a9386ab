"""Tests the self-check in 16 bits: models that only round pass, even with experts chosen by a tiny margin, and every
planted error is found."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from gridwork_kernels import cpu_attention
from gridwork_kernels.experts import PackedExperts
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.model.loading import LoadedModel, load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths import choice, self_check
from gridwork_server.paths.caller import Caller
from gridwork_server.paths.float32_forward import in_float32
from gridwork_server.paths.paged import PagedPath
from gridwork_server.paths.routing_replay import RoutingReplay

from .. import models
from ..planted_errors import BATCHED, PAGED

SIZES: dict[str, Any] = {
    "vocab_size": models.VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

GPT_OSS = SIZES | {"head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 8}

CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt_oss": lambda: transformers.GptOssConfig(**GPT_OSS, num_hidden_layers=2, initializer_range=0.3),
    "deep gpt_oss": lambda: transformers.GptOssConfig(**GPT_OSS, num_hidden_layers=20),
    "deep deepseek_v3": lambda: transformers.DeepseekV3Config(
        **SIZES,
        num_hidden_layers=20,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        n_shared_experts=1,
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=models.VOCAB, hidden_size=64, n_layer=3, n_head=4, initializer_range=0.3
    ),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a function from an architecture's name to a loaded model, in bfloat16 by default."""

    @functools.cache
    def get(name: str, dtype: str = "bfloat16", **settings: Any) -> LoadedModel:
        folder = tmp_path_factory.mktemp("model")
        if name in CONFIGS:
            torch.manual_seed(0)
            transformers.AutoModelForCausalLM.from_config(CONFIGS[name]()).save_pretrained(folder)
        else:
            models.save(name, folder)
        return load(ShardConfig(model_path=folder, socket="", dtype=dtype, **settings), RankGroup())

    return get


def choose(loaded: LoadedModel, wish: str = "paged") -> choice.Choice:
    """Chooses the path again."""
    return choice.choose(loaded.model, wish, "auto", loaded.dtype, loaded.device, RankGroup(), record=True)


def plainly(loaded: LoadedModel, dtype: torch.dtype, sequences: list[np.ndarray] | None = None) -> torch.Tensor:
    """Logits of plain forward()."""
    sequences = sequences or self_check.sample_tokens(loaded.vocab_size)
    model: Any = loaded.model
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        return self_check.plain_logits(Caller(model, loaded.device), sequences, dtype, 1)
    finally:
        model.set_attn_implementation("gridwork_paged")


@pytest.mark.parametrize("name", ["deep gpt_oss", "deep deepseek_v3"])
def test_differently_chosen_experts_are_not_an_error(name: str, loaded: Any) -> None:
    """Rounding sends tokens to other experts, and nothing else is wrong."""
    model = loaded(name)
    assert (model.path.name, model.path_reason) == ("paged", "")
    # Instruction sets round differently, so that an expert is chosen differently for other tokens.
    largest = 0.0
    for seed in range(20):
        sequences = self_check.sample_tokens(model.vocab_size, seed)
        given = self_check.path_logits(model.path, sequences)
        found = self_check.differences(given, plainly(model, torch.bfloat16, sequences))
        assert found is not None
        largest = max(largest, found.largest)
        if largest > 0.1:
            break
    assert largest > 0.1, "no expert is chosen differently: this test needs other sizes"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_paths_without_errors_pass(name: str, dtype: str, loaded: Any) -> None:
    model = loaded(name, dtype)
    assert (model.path.name, model.path_reason) == ("paged", "")


NO_EFFECT = {
    "llama": {"window longer by one", "window shorter by one", "window dropped", "scores not capped"},
    "gemma3": {"scores not capped"},
    "gpt_oss": {"scores not capped"},
}
"""Errors without an effect, since the model lacks the feature."""

SINKS = {"sinks dropped", "sinks of other heads"}


@pytest.mark.parametrize("error", PAGED)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_every_planted_error_is_found_in_16_bits(name: str, error: str, loaded: Any) -> None:
    model = loaded(name)
    none = NO_EFFECT[name] | {"chunks dropped"} | (set() if name == "gpt_oss" else SINKS)
    with PAGED[error]():
        if error in none:
            assert choose(model).reason == ""
        else:
            # An error that makes the code fail would be found by any check.
            with pytest.raises(ModelError, match=r"not paged: (its logits differ|the cache of layer \d+ slides)"):
                choose(model)


@pytest.mark.parametrize("error", BATCHED)
def test_every_error_planted_in_cohorts_is_found_in_16_bits(error: str, loaded: Any) -> None:
    model = loaded("bloom")
    assert "padding" not in model.path_reason
    with BATCHED[error](), contextlib.suppress(ModelError):
        assert "not batched with padding" in choose(model, "batched").reason


@contextlib.contextmanager
def _in_kernels_of_16_bits(change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Changes the results of attention in bfloat16, but not in float32."""
    plain = cpu_attention.CpuAttention.attend

    def attend(self: Any, query: torch.Tensor, *arguments: Any) -> torch.Tensor:
        out = plain(self, query, *arguments)
        return change(out) if query.dtype == torch.bfloat16 else out

    with patch.object(cpu_attention.CpuAttention, "attend", attend):
        yield


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_an_error_only_in_16_bits_is_found(name: str, loaded: Any) -> None:
    model = loaded(name)
    unrecorded = model.model, "paged", "auto", model.dtype, model.device, RankGroup()
    assert choice.choose(*unrecorded).reason == ""
    with (
        _in_kernels_of_16_bits(lambda out: out * 1.2),
        pytest.raises(ModelError, match=r"times as much as by rounding alone"),
    ):
        choice.choose(*unrecorded)


def test_a_fixed_bound_applies_if_float32_fails(loaded: Any) -> None:
    model = loaded("llama")
    with patch("gridwork_server.paths.rounding_check.in_float32", side_effect=RuntimeError("mixed types")):
        assert choose(model).reason == ""
        with (
            PAGED["causal mask dropped"](),
            pytest.raises(ModelError, match=r"float32 cannot show.*mixed types"),
        ):
            choose(model)


@pytest.mark.parametrize("free_bytes", [2**40, 0], ids=["at once", "a module at a time"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "deepseek_v2", "gemma2"])
def test_float32_forward_uses_the_models_weights(name: str, free_bytes: int, loaded: Any) -> None:
    model = loaded(name)
    before = plainly(model, torch.bfloat16)
    with in_float32(model.model, free_bytes):
        wide = plainly(model, torch.float32)
    after = plainly(model, torch.bfloat16)
    assert torch.equal(before, after)
    folder = model.config.name_or_path
    twin: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float().eval()
    expected = self_check.plain_logits(Caller(twin, model.device), self_check.sample_tokens(131), torch.float32, 1)
    torch.testing.assert_close(wide, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("free_bytes", [2**40, 0], ids=["at once", "a module at a time"])
def test_model_is_restored_after_an_exception(free_bytes: int, loaded: Any) -> None:
    model = loaded("llama")
    state = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    kinds = [type(module) for module in model.model.modules()]

    def fail(*_arguments: Any) -> None:
        raise KeyError("anything")

    handle = model.model.model.layers[1].self_attn.register_forward_pre_hook(fail)
    with pytest.raises(KeyError), in_float32(model.model, free_bytes):
        plainly(model, torch.float32)
    handle.remove()
    assert [type(module) for module in model.model.modules()] == kinds
    after = model.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert all(tensor.dtype == state[name].dtype for name, tensor in after.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


class _Router(nn.Module):
    """Chooses two of four numbers for each token, and gives their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.tensor([[4.0, 3, 2, 1], [1, 2, 3, 4], [1, 2, 4, 3]])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.scores[input_ids[0]].topk(2).values.sum(-1)


def test_recorded_choices_are_repeated_by_token() -> None:
    router = _Router()
    choices = RoutingReplay(router)
    with choices.recording():
        router(input_ids=torch.tensor([[0, 1, 2]]))
    router.scores = router.scores.flip(1)
    assert router(input_ids=torch.tensor([[2, 0]])).tolist() == [7, 7]
    with choices.replaying():
        assert router(input_ids=torch.tensor([[2, 0]])).tolist() == [3, 3]
        assert router(input_ids=torch.tensor([[1]])).tolist() == [3]
    assert router(input_ids=torch.tensor([[2, 0]])).tolist() == [7, 7]


@pytest.mark.parametrize("method", [None, "int8", "int4"])
def test_packed_experts_can_be_unpacked(method: str | None, loaded: Any) -> None:
    """An expert's layers, as `nn.Linear` would have them, give what the kernel gives for a token of that expert."""
    settings = {"quantize": method} if method else {}
    packed = next(m for m in loaded("qwen3_moe", **settings).model.modules() if isinstance(m, PackedExperts))
    if method and packed.method is None:
        pytest.skip("experts of this shape are not quantized")
    x = torch.randn(5, 48).bfloat16()
    index, weights = torch.full((5, 1), 2), torch.ones(5, 1)
    expected = packed(x, index, weights).float()
    first, _ = packed.layer("first", 2, 48)
    pairs = packed.plain._apply_gate(x.float() @ first.t())
    second, _ = packed.layer("second", 2, pairs.shape[1])
    difference = (pairs @ second.t() - expected).square().mean().sqrt() / expected.std()
    assert difference < 0.03


def test_spoiled_cache_marks_unwritten_values(loaded: Any) -> None:
    model = loaded("llama")
    path = PagedPath(model.model, model.dtype, model.device, "auto")
    limits, blocks = self_check._limits(4)
    path.allocate(limits, blocks)
    path.spoil_cache(100.0)
    for values in path._values.values():
        assert bool((values[:blocks] == 100).all())
        assert bool((values[blocks:] == 0).all())
    for keys in path._keys.values():
        assert bool((keys == 0).all())
