"""The compiled paged attention against the definition of attention, token by token."""

import math

import pytest
import torch

from gridwork_kernels import cpu_attention

BLOCK_SIZE = 16
NUM_BLOCKS = 64

pytestmark = pytest.mark.skipif(
    not cpu_attention.supports(torch.float32, 64, 64), reason="the CPU lacks AVX-512 or the library was not built"
)


def definition(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    sequence: torch.Tensor,
    length: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    group = query.shape[1] // keys.shape[1]
    results = []
    for token in range(query.shape[0]):
        end = int(length[token])
        positions = torch.arange(max(0, end - window) if window else 0, end)
        slots = tables[sequence[token]].long()[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        k = keys[slots].double().repeat_interleave(group, 1)
        v = values[slots].double().repeat_interleave(group, 1)
        scores = torch.einsum("hd,lhd->hl", query[token].double(), k) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None].double()], 1)
        weights = scores.softmax(-1)[:, : len(positions)]
        results.append(torch.einsum("hl,lhd->hd", weights, v))
    return torch.stack(results)


def problem(
    dtype: torch.dtype, heads: int, kv_heads: int, key_size: int, value_size: int, tokens: int
) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(heads * key_size + tokens)
    keys = torch.randn(NUM_BLOCKS * BLOCK_SIZE, kv_heads, key_size).to(dtype)
    values = torch.randn(NUM_BLOCKS * BLOCK_SIZE, kv_heads, value_size).to(dtype)
    tables = torch.randperm(NUM_BLOCKS)[:60].reshape(4, 15).int()
    sequence = torch.randint(0, 4, (tokens,)).int()
    length = torch.randint(1, 15 * BLOCK_SIZE + 1, (tokens,)).int()
    query = torch.randn(tokens, heads, key_size).to(dtype)
    return query, keys, values, tables, sequence, length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(9, 3), (8, 1), (4, 4), (14, 2), (20, 2)])
@pytest.mark.parametrize("sizes", [(64, 64), (16, 16), (128, 128), (192, 128), (256, 256)])
@pytest.mark.parametrize(("window", "softcap", "with_sinks"), [(0, 0.0, False), (7, 0.0, False), (33, 20.0, True)])
def test_equals_the_definition(
    dtype: torch.dtype, heads: tuple[int, int], sizes: tuple[int, int], window: int, softcap: float, with_sinks: bool
) -> None:
    inputs = problem(dtype, *heads, *sizes, tokens=13)
    sinks = torch.randn(heads[0]) if with_sinks else None
    scale = 1 / math.sqrt(sizes[0])
    out = cpu_attention.paged_attention(
        *inputs, block_size=BLOCK_SIZE, scale=scale, window=window, softcap=softcap, sinks=sinks
    )
    expected = definition(*inputs, scale, window, softcap, sinks)
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-3}
    torch.testing.assert_close(out.double(), expected, **tolerance)


def test_a_token_does_not_depend_on_its_batch_mates() -> None:
    query, keys, values, tables, sequence, length = problem(torch.float32, 9, 3, 64, 64, tokens=64)
    together = cpu_attention.paged_attention(
        query, keys, values, tables, sequence, length, block_size=BLOCK_SIZE, scale=0.125
    )
    for i in (0, 17, 63):
        alone = cpu_attention.paged_attention(
            query[i : i + 1],
            keys,
            values,
            tables,
            sequence[i : i + 1],
            length[i : i + 1],
            block_size=BLOCK_SIZE,
            scale=0.125,
        )
        assert torch.equal(alone[0], together[i])


def test_stale_nan_beyond_the_length_is_not_read_and_nan_inside_shows() -> None:
    query, keys, values, tables, _, _ = problem(torch.float32, 2, 1, 16, 16, tokens=2)
    slot = int(tables[0, 0]) * BLOCK_SIZE + 5
    keys[slot], values[slot] = float("nan"), float("nan")
    sequence = torch.zeros(2, dtype=torch.int32)
    length = torch.tensor([5, 6], dtype=torch.int32)
    out = cpu_attention.paged_attention(
        query, keys, values, tables, sequence, length, block_size=BLOCK_SIZE, scale=0.25
    )
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_a_query_with_strided_tokens_is_read_in_place() -> None:
    query, keys, values, tables, sequence, length = problem(torch.float32, 4, 2, 32, 32, tokens=8)
    wide = torch.zeros(8, 6, 32)
    wide[:, :4] = query
    expected = cpu_attention.paged_attention(
        query, keys, values, tables, sequence, length, block_size=BLOCK_SIZE, scale=0.2
    )
    out = cpu_attention.paged_attention(
        wide[:, :4], keys, values, tables, sequence, length, block_size=BLOCK_SIZE, scale=0.2
    )
    assert torch.equal(out, expected)
