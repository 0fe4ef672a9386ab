"""The arguments of FlashAttention's kernels, computed by stand-ins with the same signatures."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_problems import BLOCK_SIZE, DECODES, MIXED, OPTIONS, problem
from torch.utils._python_dispatch import TorchDispatchMode

from gridwork_kernels import flash_attention
from gridwork_kernels.paged_attention import PagedLayout
from gridwork_kernels.slot_attention import reference


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tokens: list[int],
    lengths: list[int],
    table: torch.Tensor,
    scale: float,
    left: int,
    softcap: float = 0.0,
    slopes: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mask of the kernels' documentation: query i of a sequence sees the keys from `i + shift - left` up to
    `i + shift`, where shift is the number of keys minus the number of queries; left -1: from the first key on."""
    rows = []
    for row, length in enumerate(lengths):
        queries = q[tokens[row] : tokens[row + 1]]
        group = q.shape[1] // k.shape[2]
        own = [pool[table[row].long()].flatten(0, 1)[:length].repeat_interleave(group, 1) for pool in (k, v)]
        scores = torch.einsum("qhd,khd->hqk", queries, own[0]) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        i = torch.arange(len(queries))[:, None] + length - len(queries)
        j = torch.arange(length)
        if slopes is not None:
            scores = scores - slopes[:, None, None] * (i - j).abs()
        seen = (j <= i) & ((j >= i - left) if left >= 0 else True)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        rows.append(torch.einsum("hqk,khd->qhd", weights, own[1]))
    return torch.cat(rows)


def version_2(q: Any, k: Any, v: Any, **given: Any) -> torch.Tensor:
    assert given["causal"] and given["max_seqlen_k"] >= int(given["cu_seqlens_k"].diff().max())
    assert given["max_seqlen_q"] == int(given["cu_seqlens_q"].diff().max())
    assert {given[name].dtype for name in ("cu_seqlens_q", "cu_seqlens_k", "block_table")} == {torch.int32}
    tokens, lengths = given["cu_seqlens_q"].tolist(), given["cu_seqlens_k"].diff().tolist()
    rest = (given["window_size"][0], given["softcap"], given["alibi_slopes"])
    return dense(q, k, v, tokens, lengths, given["block_table"], given["softmax_scale"], *rest)


def version_3(q: Any, k: Any, v: Any, **given: Any) -> torch.Tensor:
    assert given["causal"] and given["max_seqlen_q"] == int(given["cu_seqlens_q"].diff().max())
    tokens, lengths = given["cu_seqlens_q"].tolist(), given["cache_seqlens"].tolist()
    rest = (given["window_size"][0], given["softcap"])
    return dense(q, k, v, tokens, lengths, given["page_table"], given["softmax_scale"], *rest)


def pytorch(q: Any, k: Any, v: Any, tokens: Any, keys: Any, max_q: int, max_k: int, **given: Any) -> torch.Tensor:
    assert given["enable_gqa"] and given["window_size"][1] == 0
    assert max_k >= int(keys.diff().max()) and max_q == int(tokens.diff().max())
    assert given["seqused_k"].tolist() == keys.diff().tolist()
    lengths, left = given["seqused_k"].tolist(), given["window_size"][0]
    return dense(q, k, v, tokens.tolist(), lengths, given["block_table"], given["scale"], left)


@pytest.fixture(params=["version 2", "version 3", "pytorch"])
def attend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function of a package, which calls its stand-in."""
    if request.param == "pytorch":
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", pytorch)
        return flash_attention.varlen
    version = int(request.param[-1])
    stand_in = flash_attention.Package("stand-in", version, version_2 if version == 2 else version_3)
    monkeypatch.setattr(flash_attention, "package", lambda major: stand_in)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return flash_attention.flash_attn


def clean(layout: PagedLayout, *caches: torch.Tensor) -> None:
    """Replaces the NaN of unused slots by 0, since the stand-in reads whole blocks."""
    for cache in caches:
        cache.nan_to_num_(0)


@pytest.mark.parametrize("options", ["plain", "window", "window of one"])
@pytest.mark.parametrize("chunks", [MIXED, DECODES], ids=["mixed", "decodes"])
def test_equals_the_reference(attend: Any, options: str, chunks: list[tuple[int, int]]) -> None:
    query, keys, values, layout = problem(chunks, 2)
    clean(layout, keys, values)
    out = attend(query, keys, values, layout, OPTIONS[options])
    torch.testing.assert_close(out, reference(query, keys, values, layout, OPTIONS[options]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", ["softcap", "slopes"])
def test_the_package_supports_softcap_and_slopes(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "package", lambda major: SimpleNamespace(version=2, attend=version_2))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    query, keys, values, layout = problem(MIXED, 2)
    clean(layout, keys, values)
    out = flash_attention.flash_attn(query, keys, values, layout, OPTIONS[options])
    torch.testing.assert_close(out, reference(query, keys, values, layout, OPTIONS[options]), rtol=1e-5, atol=1e-5)


def test_a_fixed_step_reads_lengths_only_from_tensors(attend: Any) -> None:
    query, keys, values, layout = problem(DECODES, 2)
    clean(layout, keys, values)
    expected = reference(query, keys, values, layout, OPTIONS["window"])
    layout.is_fixed, layout.end = True, []
    torch.testing.assert_close(attend(query, keys, values, layout, OPTIONS["window"]), expected, rtol=1e-5, atol=1e-5)


def test_arguments_that_describe_a_step() -> None:
    *_, layout = problem([(5, 5), (1, 9), (7, 20)], 2)
    ragged = flash_attention.ragged(layout)
    assert (ragged.tokens.tolist(), ragged.keys.tolist()) == ([0, 5, 6, 13], [0, 5, 14, 34])
    assert (ragged.lengths.tolist(), ragged.max_tokens, ragged.max_keys) == ([5, 9, 20], 7, 20)
    assert flash_attention.ragged(layout) is ragged
    *_, layout = problem(DECODES, 2)
    layout.is_fixed, layout.end = True, []
    ragged = flash_attention.ragged(layout)
    assert (ragged.tokens.tolist(), ragged.keys.tolist()) == ([0, 1, 2, 3], [0, 1, 18, 48])
    assert (ragged.lengths.tolist(), ragged.max_tokens) == ([1, 17, 30], 1)
    assert ragged.max_keys == layout.block_tables.shape[1] * BLOCK_SIZE


class Calls(TorchDispatchMode):
    """The arguments of PyTorch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if "_varlen_attn" in str(func):
            assert not torch.backends.cuda.cudnn_sdp_enabled(), "cuDNN plans anew for every shape"
            self.arguments.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", ["plain", "window"])
@pytest.mark.parametrize("is_fixed", [False, True], ids=["any step", "fixed"])
def test_pytorch_accepts_the_arguments(options: str, is_fixed: bool) -> None:
    """Runs PyTorch's own function up to its kernel, with tensors without data."""
    *tensors, layout = problem(DECODES, 2)
    query, keys, values = (tensor.to("meta") for tensor in tensors)
    for name in ("block_tables", "sequence", "length", "slots"):
        setattr(layout, name, getattr(layout, name).to("meta"))
    if is_fixed:
        layout.is_fixed, layout.end = True, []
    with Calls() as calls, torch.inference_mode():
        out = flash_attention.varlen(query, keys, values, layout, OPTIONS[options])
    assert out.shape == query.shape and out.dtype == query.dtype
    (given,) = calls.arguments
    assert given[1].shape == (len(keys) // BLOCK_SIZE, BLOCK_SIZE, 2, 16)
    expected = (True, 0.25, [-1, 0]) if options == "plain" else (False, 0.25, [5, 0])
    assert given[7:10] == expected, "causal, scale and window"
