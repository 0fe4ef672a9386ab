"""The gated delta rule (Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks"), with states in a pool."""

import torch

from gridwork_kernels.states import has_kernels, is_rows, sequences


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    normalise: bool,
    starts: torch.Tensor,
    slots: torch.Tensor,
    fresh: torch.Tensor,
    pool: torch.Tensor,
) -> torch.Tensor:
    """The plain form of `gated_delta`."""
    out = torch.empty_like(value, memory_format=torch.contiguous_format)
    queries, keys, values = query.float(), key.float(), value.float()
    if normalise:
        queries, keys = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (queries, keys))
    heads = value.shape[1] // key.shape[1]
    queries = (queries * queries.shape[-1] ** -0.5).repeat_interleave(heads, 1)
    keys = keys.repeat_interleave(heads, 1)
    kept = decay.exp()
    kept = kept[..., None, None] if kept.dim() == 2 else kept[..., None]
    for tokens, slot, state in sequences(starts, slots, fresh, pool):
        for token in tokens:
            state = state * kept[token]
            known = (state * keys[token][..., None]).sum(-2)
            change = (values[token] - known) * beta[token][:, None]
            state = state + keys[token][..., None] * change[:, None]
            out[token] = (state * queries[token][..., None]).sum(-2).to(out.dtype)
        pool[slot] = state
    return out


def gated_delta(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    normalise: bool,
    starts: torch.Tensor,
    slots: torch.Tensor,
    fresh: torch.Tensor,
    pool: torch.Tensor,
) -> torch.Tensor:
    """For each token and value head: the state, `[key size, value size]`, decays; what it holds for the key is moved
    towards the value by `beta`; the result is what it then holds for the query, over the square root of the key's size.

    query, key: `[T, key heads, key size]` and value: `[T, value heads, value size]`, of one dtype; a key head serves
    consecutive value heads. decay: float32, logarithms of the state's factors, `[T, value heads]`, or `[T, value heads,
    key size]` for the rows of a state; beta: float32 `[T, value heads]`; normalise: divides queries and keys by their
    norms; pool: float32 `[slots, value heads, key size, value size]`, changed in place. For the others see `states.py`.
    Returns `[T, value heads, value size]` in value's dtype; all sums are in float32.
    """
    arguments = query, key, value, decay, beta, normalise, starts, slots, fresh, pool
    if has_kernels(query, key, value) and has_kernels(decay, beta) and is_rows(pool):
        out: torch.Tensor = torch.ops.gridwork_cpu.gated_delta(*arguments)
        return out
    return reference(*arguments)
