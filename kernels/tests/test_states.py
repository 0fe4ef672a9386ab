"""Operations with recurrent states: kernels beside their plain forms, and these beside Transformers' functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from gridwork_kernels import cpu_attention, selective_scan
from gridwork_kernels.causal_conv import causal_conv
from gridwork_kernels.causal_conv import reference as reference_conv
from gridwork_kernels.gated_delta import gated_delta
from gridwork_kernels.gated_delta import reference as reference_delta
from gridwork_kernels.replace import sample_values

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (1, 2, 3, 63, 1, 65, 17)
FRESH = (True, False, True, False, True, False, True)
NUM_SLOTS = 11


@dataclass
class Problem:
    """An operation's tensors of tokens, the rest of its arguments, and its pool."""

    of_tokens: list[torch.Tensor]
    rest: tuple[Any, ...]
    pool: torch.Tensor

    def run(
        self, function: Callable[..., torch.Tensor], lengths: tuple[int, ...], slots: list[int], fresh: list[bool]
    ) -> torch.Tensor:
        starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return function(*self.of_tokens, *self.rest, starts, torch.tensor(slots), torch.tensor(fresh), self.pool)


def rows(tokens: int, *sizes: int, dtype: torch.dtype, seed: float) -> torch.Tensor:
    """`[tokens, *sizes]`, cut from wider rows."""
    width = int(torch.tensor(sizes).prod())
    wide = (sample_values(tokens, width + 5) * seed + 0.1).to(dtype)
    return wide[:, 3 : 3 + width].unflatten(1, sizes)


def conv(tokens: int, dtype: torch.dtype, channels: int, size: int, silu: bool) -> Problem:
    weight, bias = sample_values(channels, size).to(dtype), sample_values(channels).to(dtype) if silu else None
    pool = sample_values(NUM_SLOTS, size - 1, channels).to(dtype)
    return Problem([rows(tokens, channels, dtype=dtype, seed=0.9)], (weight, bias, silu), pool)


def delta(
    tokens: int, dtype: torch.dtype, heads: tuple[int, int], sizes: tuple[int, int], per_row: bool, normalise: bool
) -> Problem:
    (key_heads, value_heads), (key_size, value_size) = heads, sizes
    decays = (value_heads, key_size) if per_row else (value_heads,)
    tensors = [
        rows(tokens, key_heads, key_size, dtype=dtype, seed=0.8),
        rows(tokens, key_heads, key_size, dtype=dtype, seed=0.7) * (1 if normalise else 0.2),
        rows(tokens, value_heads, value_size, dtype=dtype, seed=1.1),
        -rows(tokens, *decays, dtype=torch.float32, seed=1.3).abs(),
        rows(tokens, value_heads, dtype=torch.float32, seed=0.9).sigmoid(),
    ]
    return Problem(tensors, (normalise,), sample_values(NUM_SLOTS, value_heads, key_size, value_size))


def heads(tokens: int, dtype: torch.dtype, num_heads: int, groups: int, size: int, state: int, full: bool) -> Problem:
    tensors = [
        rows(tokens, num_heads, size, dtype=dtype, seed=0.8),
        rows(tokens, num_heads, dtype=dtype, seed=2.0),
    ]
    of_groups = [rows(tokens, groups, state, dtype=dtype, seed=seed) for seed in (0.7, 1.2)]
    own = (sample_values(num_heads), sample_values(num_heads) * 0.5) if full else (None, None)
    limits = (True, 0.01, 1.5) if full else (False, -0.5, float("inf"))
    pool = sample_values(NUM_SLOTS, num_heads, state, size)
    return Problem([*tensors, -sample_values(num_heads).abs(), *of_groups], (*own, *limits), pool)


def channels(tokens: int, dtype: torch.dtype, count: int, state: int, full: bool) -> Problem:
    tensors = [rows(tokens, count, dtype=dtype, seed=0.8), rows(tokens, count, dtype=dtype, seed=1.5)]
    of_state = [rows(tokens, state, dtype=dtype, seed=seed) for seed in (0.7, 1.2)]
    own = (sample_values(count), sample_values(count) * 0.5) if full else (None, None)
    pool = sample_values(NUM_SLOTS, count, state)
    return Problem([*tensors, -sample_values(count, state).abs(), *of_state], (*own, full), pool)


CASES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], Callable[..., Problem]]] = {
    "conv": (causal_conv, reference_conv, lambda n, t: conv(n, t, 96, 4, True)),
    "conv of 3": (causal_conv, reference_conv, lambda n, t: conv(n, t, 37, 3, False)),
    "conv of 8": (causal_conv, reference_conv, lambda n, t: conv(n, t, 300, 8, True)),
    "conv of 2": (causal_conv, reference_conv, lambda n, t: conv(n, t, 5, 2, False)),
    "delta": (gated_delta, reference_delta, lambda n, t: delta(n, t, (2, 4), (64, 64), False, True)),
    "delta of odd sizes": (gated_delta, reference_delta, lambda n, t: delta(n, t, (3, 3), (18, 21), False, False)),
    "delta by rows": (gated_delta, reference_delta, lambda n, t: delta(n, t, (2, 2), (32, 48), True, True)),
    "heads": (
        selective_scan.scan_heads,
        selective_scan.reference_heads,
        lambda n, t: heads(n, t, 6, 2, 64, 32, True),
    ),
    "heads of odd sizes": (
        selective_scan.scan_heads,
        selective_scan.reference_heads,
        lambda n, t: heads(n, t, 3, 1, 19, 7, False),
    ),
    "channels": (
        selective_scan.scan_channels,
        selective_scan.reference_channels,
        lambda n, t: channels(n, t, 70, 16, True),
    ),
    "channels of odd sizes": (
        selective_scan.scan_channels,
        selective_scan.reference_channels,
        lambda n, t: channels(n, t, 9, 5, False),
    ),
}

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def part_of(problem: Problem, begin: int, end: int) -> Problem:
    """The same problem with some of its tokens. Tensors without tokens stay."""
    total = len(problem.of_tokens[0])
    cut = [tensor[begin:end] if len(tensor) == total else tensor for tensor in problem.of_tokens]
    return Problem(cut, problem.rest, problem.pool)


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    scale = float(expected.float().abs().max())
    return torch.allclose(got.float(), expected.float(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_computes_its_plain_form(name: str, dtype: torch.dtype) -> None:
    kernel, reference, make = CASES[name]
    slots = torch.randperm(NUM_SLOTS, generator=torch.Generator().manual_seed(1))[: len(LENGTHS)].tolist()
    given, plain = make(sum(LENGTHS), dtype), make(sum(LENGTHS), dtype)
    before = given.pool.clone()
    got, expected = given.run(kernel, LENGTHS, slots, list(FRESH)), plain.run(reference, LENGTHS, slots, list(FRESH))
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert close(got, expected, TOLERANCES[dtype])
    assert close(given.pool, plain.pool, TOLERANCES[dtype])
    others = [slot for slot in range(NUM_SLOTS) if slot not in slots]
    assert torch.equal(given.pool[others], before[others])
    assert not torch.equal(given.pool[slots], before[slots])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_results_do_not_depend_on_cuts_and_neighbours(name: str, dtype: torch.dtype) -> None:
    kernel, _, make = CASES[name]
    total = 90
    whole = make(total, dtype)
    expected = whole.run(kernel, (40, 50), [3, 7], [True, True])
    states = whole.pool[[3, 7]].clone()
    cut = make(total, dtype)
    results = []
    for sequence, first, pieces in ((0, 0, (1, 22, 1, 16)), (1, 40, (50,))):
        at = first
        for piece in pieces:
            part = part_of(cut, at, at + piece)
            results.append(part.run(kernel, (piece,), [(2, 9)[sequence]], [at == first]))
            at += piece
    assert torch.equal(torch.cat(results), expected)
    assert torch.equal(cut.pool[[2, 9]], states)


def test_a_batch_without_tokens_changes_nothing() -> None:
    for kernel, _, make in CASES.values():
        problem = part_of(make(4, torch.float32), 0, 0)
        before = problem.pool.clone()
        assert len(problem.run(kernel, (), [], [])) == 0
        assert torch.equal(problem.pool, before)


# --- the plain forms beside Transformers' functions ----------------------------------------------------------------


def one_sequence(problem: Problem, function: Callable[..., torch.Tensor]) -> torch.Tensor:
    return problem.run(function, (len(problem.of_tokens[0]),), [0], [True])


def test_convolutions_are_those_of_transformers() -> None:
    from transformers.models.qwen3_5.modeling_qwen3_5 import causal_conv1d_fn

    problem = conv(21, torch.float32, 24, 4, True)
    (x,), (weight, bias, _) = problem.of_tokens, problem.rest
    expected = causal_conv1d_fn(x.T[None], weight, bias, activation="silu")[0].T
    assert close(one_sequence(problem, reference_conv), expected, 1e-5)


@pytest.mark.parametrize("per_row", [False, True])
def test_the_delta_rule_is_that_of_transformers(per_row: bool) -> None:
    if per_row:
        from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention as function
    else:
        from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule as function
    problem = delta(21, torch.float32, (2, 2) if per_row else (2, 4), (16, 8), per_row, True)
    expected, state = function(
        *(tensor[None] for tensor in problem.of_tokens),
        initial_state=None,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    assert close(one_sequence(problem, reference_delta), expected[0], 1e-5)
    assert close(problem.pool[0], state[0], 1e-5)


def test_scans_of_heads_are_those_of_transformers() -> None:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    problem = heads(21, torch.float32, 4, 2, 8, 16, True)
    (x, step, a, b, c), (d, bias, softplus, least, most) = problem.of_tokens, problem.rest
    expected, state = mamba2_chunk_scan(
        x[None],
        step[None],
        a,
        b[None],
        c[None],
        chunk_size=8,
        D=d,
        dt_bias=bias,
        dt_softplus=softplus,
        dt_limit=(least, most),
        return_final_states=True,
    )
    assert close(one_sequence(problem, selective_scan.reference_heads), expected[0], 1e-4)
    assert close(problem.pool[0], state[0].transpose(1, 2), 1e-4)


def test_scans_of_channels_are_those_of_transformers() -> None:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    problem = channels(21, torch.float32, 24, 8, True)
    (x, step, a, b, c), (d, bias, softplus) = problem.of_tokens, problem.rest
    expected, state = mamba_selective_scan(
        *(tensor.T[None] for tensor in (x, step)),
        a,
        *(tensor.T[None] for tensor in (b, c)),
        D=d,
        delta_bias=bias,
        delta_softplus=softplus,
        return_last_state=True,
    )
    assert close(one_sequence(problem, selective_scan.reference_channels), expected[0].T, 1e-4)
    assert close(problem.pool[0], state[0], 1e-4)
