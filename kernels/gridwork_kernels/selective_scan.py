"""Selective scans with states in a pool: Mamba-2's, whose heads share one decay (Dao and Gu 2024, "Transformers are
SSMs"), and Mamba's, where each value of a state has its own (Gu and Dao 2023, "Mamba")."""

import torch

from gridwork_kernels.states import has_kernels, sequences, softplus_of


def reference_heads(
    x: torch.Tensor,
    step: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    bias: torch.Tensor | None,
    softplus: bool,
    least: float,
    most: float,
    starts: torch.Tensor,
    slots: torch.Tensor,
    fresh: torch.Tensor,
    pool: torch.Tensor,
) -> torch.Tensor:
    """The plain form of `scan_heads`."""
    steps = softplus_of(step, bias, softplus).clamp(least, most).float()
    heads = x.shape[1] // b.shape[1]
    inputs, b, c = x.float(), b.float().repeat_interleave(heads, 1), c.float().repeat_interleave(heads, 1)
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for tokens, slot, state in sequences(starts, slots, fresh, pool):
        for token in tokens:
            decay, change = (a * steps[token]).exp(), steps[token][:, None] * inputs[token]
            state = state * decay[:, None, None] + b[token][..., None] * change[:, None]
            out[token] = (state * c[token][..., None]).sum(-2)
        pool[slot] = state
    return out if d is None else out + d[:, None] * inputs


def scan_heads(
    x: torch.Tensor,
    step: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    bias: torch.Tensor | None,
    softplus: bool,
    least: float,
    most: float,
    starts: torch.Tensor,
    slots: torch.Tensor,
    fresh: torch.Tensor,
    pool: torch.Tensor,
) -> torch.Tensor:
    """Mamba-2's scan. For each token and head: the state decays by `exp(a * step)`, the outer product of `b` and
    `step * x` is added, and the result is `c` times the state, plus `d * x`.

    x: `[T, heads, size]`; step: `[T, heads]`, to which `bias` is added, and whose softplus is taken with `softplus`;
    then it is kept between `least` and `most`; b, c: `[T, groups, state size]`, a group for consecutive heads; these
    four of one dtype. a, d, bias: float32 `[heads]`. pool: float32 `[slots, heads, state size, size]`, changed in
    place. For the others see `states.py`. Returns float32 `[T, heads, size]`.
    """
    arguments = x, step, a, b, c, d, bias, softplus, least, most, starts, slots, fresh, pool
    if has_kernels(x, step, b, c) and has_kernels(a, d, bias):
        out: torch.Tensor = torch.ops.gridwork_cpu.scan_heads(*arguments)
        return out
    return reference_heads(*arguments)


def reference_channels(
    x: torch.Tensor,
    step: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    bias: torch.Tensor | None,
    softplus: bool,
    starts: torch.Tensor,
    slots: torch.Tensor,
    fresh: torch.Tensor,
    pool: torch.Tensor,
) -> torch.Tensor:
    """The plain form of `scan_channels`."""
    steps, inputs = softplus_of(step, bias, softplus).float(), x.float()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for tokens, slot, state in sequences(starts, slots, fresh, pool):
        for token in tokens:
            change = (steps[token] * inputs[token])[:, None] * b[token].float()
            state = state * (a * steps[token][:, None]).exp() + change
            out[token] = (state * c[token].float()).sum(-1)
        pool[slot] = state
    return out if d is None else out + d * inputs


def scan_channels(
    x: torch.Tensor,
    step: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor | None,
    bias: torch.Tensor | None,
    softplus: bool,
    starts: torch.Tensor,
    slots: torch.Tensor,
    fresh: torch.Tensor,
    pool: torch.Tensor,
) -> torch.Tensor:
    """Mamba's scan. For each token and channel: each value of the state decays by `exp(a * step)`, `step * b * x` is
    added, and the result is the sum of the state times `c`, plus `d * x`.

    x, step: `[T, C]`, step as for `scan_heads` but without limits; b, c: `[T, state size]`; these four of one dtype. a:
    float32 `[C, state size]`; d, bias: float32 `[C]`. pool: float32 `[slots, C, state size]`, changed in place. For the
    others see `states.py`. Returns float32 `[T, C]`.
    """
    arguments = x, step, a, b, c, d, bias, softplus, starts, slots, fresh, pool
    if has_kernels(x, step, b, c) and has_kernels(a, d, bias):
        out: torch.Tensor = torch.ops.gridwork_cpu.scan_channels(*arguments)
        return out
    return reference_channels(*arguments)
