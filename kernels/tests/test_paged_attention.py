"""The implementations of paged attention against `reference`, and `reference` against a dense softmax."""

import pytest
import torch
from attention_problems import BLOCK_SIZE, DECODES, MIXED, NUM_BLOCKS, OPTIONS, problem

from gridwork_kernels import cpu_attention
from gridwork_kernels.attention_choice import EVERYWHERE, IMPLEMENTATIONS
from gridwork_kernels.paged_attention import SPARE_BLOCKS, AttentionOptions
from gridwork_kernels.slot_attention import SlotAttention, reference


def in_layout_of(implementation: str, slots: torch.Tensor, is_key: bool) -> torch.Tensor:
    """Converts a cache of slots, `[num_slots, num_kv_heads, size]`, to the layout of an implementation."""
    if isinstance(IMPLEMENTATIONS[implementation], SlotAttention):
        return slots.clone()
    blocks = slots.unflatten(0, (-1, BLOCK_SIZE))
    summed_over = blocks.permute(0, 2, 3, 1) if is_key else blocks.transpose(1, 2)
    together = 2 if slots.dtype == torch.bfloat16 else 1
    return summed_over.unflatten(2, (-1, together)).transpose(3, 4).contiguous()


@pytest.mark.parametrize("implementation", ["cpu", "sdpa"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("chunks", [MIXED, DECODES], ids=["mixed", "decodes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_equals_the_reference(
    implementation: str, options: AttentionOptions, kv_heads: int, chunks: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    if implementation == "cpu" and not cpu_attention.supports(dtype):
        pytest.skip("no compiled kernels for this CPU")
    query, keys, values, layout = problem(chunks, kv_heads, (16, 32), dtype)
    own_keys, own_values = in_layout_of(implementation, keys, True), in_layout_of(implementation, values, False)
    out = IMPLEMENTATIONS[implementation].attend(query, None, None, own_keys, own_values, layout, options)
    assert out.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-6}
    torch.testing.assert_close(out, reference(query, keys, values, layout, options), **tolerance)


@pytest.mark.parametrize("implementation", ["cpu", *EVERYWHERE])
def test_new_keys_and_values_are_written_before_they_are_read(implementation: str) -> None:
    if implementation == "cpu" and not cpu_attention.supports(torch.float32):
        pytest.skip("no compiled kernels for this CPU")
    attention, options = IMPLEMENTATIONS[implementation], OPTIONS["plain"]
    query, keys, values, layout = problem([(5, 5), (7, 7)], kv_heads=2)
    layout.slots = torch.tensor(
        [
            int(layout.block_tables[row, (end - 1) // BLOCK_SIZE]) * BLOCK_SIZE + (end - 1) % BLOCK_SIZE
            for row, end in zip(layout.sequence.tolist(), layout.length.tolist(), strict=True)
        ]
    )
    cpu = torch.device("cpu")
    own_keys, own_values = attention.allocate(NUM_BLOCKS + SPARE_BLOCKS, BLOCK_SIZE, 2, (16, 16), torch.float32, cpu)
    out = attention.attend(query, keys[layout.slots], values[layout.slots], own_keys, own_values, layout, options)
    torch.testing.assert_close(out, reference(query, keys, values, layout, options), rtol=1e-5, atol=1e-5)
    again = attention.attend(query, None, None, own_keys, own_values, layout, options)
    assert torch.equal(again, out)
    spare = SPARE_BLOCKS * (BLOCK_SIZE if isinstance(attention, SlotAttention) else 1)
    assert not own_keys[-spare:].any() and not own_values[-spare:].any(), "the blocks for padding are zero"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_reference_is_softmax_over_the_visible_keys(options: AttentionOptions) -> None:
    query, keys, values, layout = problem([(3, 11)], kv_heads=2)
    out = reference(query, keys, values, layout, options)
    for token, head in ((0, 0), (1, 4), (2, 5)):
        end = 9 + token
        begin = max(0, end - options.window) if options.window else 0
        positions = range((end - 1) // options.chunk * options.chunk if options.chunk else begin, end)
        slots = [int(layout.block_tables[0, i // BLOCK_SIZE]) * BLOCK_SIZE + i % BLOCK_SIZE for i in positions]
        scores = torch.stack([query[token, head].dot(keys[slot, head // 3]) for slot in slots]) * options.scale
        if options.softcap:
            scores = options.softcap * (scores / options.softcap).tanh()
        if options.slopes is not None:
            scores = scores - options.slopes[head] * torch.tensor([end - 1 - i for i in positions])
        weights = scores.exp()
        total = weights.sum() + (0 if options.sinks is None else options.sinks[head].exp())
        expected = (weights[:, None] / total * values[slots, head // 3]).sum(0)
        torch.testing.assert_close(out[token, head], expected, rtol=1e-5, atol=1e-5)


def test_one_layout_serves_layers_with_different_windows() -> None:
    query, keys, values, layout = problem(MIXED, kv_heads=2)
    for name in ("window", "plain", "window"):
        out = IMPLEMENTATIONS["sdpa"].attend(query, None, None, keys, values, layout, OPTIONS[name])
        torch.testing.assert_close(out, reference(query, keys, values, layout, OPTIONS[name]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["cpu", "sdpa"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_fixed_step_reads_lengths_only_from_tensors(implementation: str, options: AttentionOptions) -> None:
    if implementation == "cpu" and not cpu_attention.supports(torch.float32):
        pytest.skip("no compiled kernels for this CPU")
    query, keys, values, layout = problem(DECODES, 2)
    expected = reference(query, keys, values, layout, options)
    own_keys, own_values = in_layout_of(implementation, keys, True), in_layout_of(implementation, values, False)
    # Wider than any sequence needs, and padded with a block that belongs to a sequence.
    layout.block_tables = torch.nn.functional.pad(layout.block_tables, (0, 2), value=int(layout.block_tables[0, 0]))
    layout.is_fixed, layout.end = True, []
    out = IMPLEMENTATIONS[implementation].attend(query, None, None, own_keys, own_values, layout, options)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
