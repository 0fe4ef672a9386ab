"""Rotary embeddings in models' own code against those of attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_kernels.paged_attention import AttentionOptions, PagedLayout
from gridwork_server.graph.fuse import fuse
from gridwork_server.graph.nodes import Graph, Node
from gridwork_server.graph.program import Program
from gridwork_server.graph.record import record
from gridwork_server.graph.simplify import drop_unused

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

HEADS, SIZE, VOCAB = 2, 16, 50
DTYPES = [torch.float32, torch.bfloat16]

Turn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(heads `[1, heads, T, size]`, cosines and sines `[1, T, size]`, in float32) -> rotated heads."""


def halves(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)


def plain(turn: Callable[[torch.Tensor], torch.Tensor]) -> Turn:
    def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        cos, sin = cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
        return x * cos + turn(x) * sin

    return turned


def olmo2(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return (x * cos.unsqueeze(1) + halves(x) * sin.unsqueeze(1)).to(x.dtype)


def cohere(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    dtype, cos, sin = x.dtype, cos.to(x.dtype).unsqueeze(1), sin.to(x.dtype).unsqueeze(1)
    x = x.float()
    return (x * cos + pairs(x) * sin).to(dtype)


def glm(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = (t.to(x.dtype).unsqueeze(1)[..., : SIZE // 4].repeat_interleave(2, dim=-1) for t in (cos, sin))
    first, rest = x[..., : SIZE // 2], x[..., SIZE // 2 :]
    return torch.cat([first * cos + pairs(first) * sin, rest], dim=-1)


FORMS = {
    "llama": (plain(halves), False),
    "interleaved": (plain(pairs), True),
    "olmo2": (olmo2, False),
    "cohere": (cohere, True),
    "glm": (glm, True),
}


def recorded(turn: Turn, dtype: torch.dtype, turn_key: Turn | None = None) -> Graph:
    torch.manual_seed(0)
    tables = [torch.randn(VOCAB, HEADS * SIZE).to(dtype) for _ in range(3)]
    frequencies = 1 / 100 ** (torch.arange(SIZE // 2) / SIZE * 2)

    def forward(input_ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, step: Any) -> torch.Tensor:
        angles = positions[..., None].float() * torch.cat([frequencies, frequencies])
        made = [torch.nn.functional.embedding(input_ids, table) for table in tables]
        query, key, value = (x.view(1, -1, HEADS, SIZE).transpose(1, 2) for x in made)
        query = turn(query, angles.cos(), angles.sin())
        key = (turn_key or turn)(key, angles.cos(), angles.sin())
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        out = step.attend(0, query, key, value, AttentionOptions(scale=0.3))
        return out.unsqueeze(0).reshape(1, -1, HEADS * SIZE)[:, kept]

    return record(forward)


def attention(graph: Graph) -> Node:
    return next(node for node in graph.nodes if node.name == "attend")


def run(graph: Graph, dtype: torch.dtype, native: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The graph's result for a prompt of 13 tokens, and the keys in the cache after it."""
    keys, values = cpu_attention.allocate(2, 16, HEADS, SIZE, SIZE, dtype)
    keys.zero_(), values.zero_()
    positions = torch.arange(13)
    row = torch.zeros(13, dtype=torch.int32)
    layout = PagedLayout(
        torch.tensor([[0]], dtype=torch.int32), row, (positions + 1).int(), positions, 16, [13], [13], 0
    )
    program = Program(graph, {}, set(), set(), native)
    program.bind({(0, 0): keys}, {(0, 0): values})
    with torch.inference_mode():
        return program.run(3 * positions[None], positions[None], positions, layout, layout), keys


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_attention_rotates_bit_for_bit_as_the_model(form: str, dtype: torch.dtype) -> None:
    turn, interleaved = FORMS[form]
    graph = recorded(turn, dtype)
    expected = run(graph, dtype, native=False)
    fuse(graph, lambda _old, _new: None)
    drop_unused(graph)
    assert len(attention(graph).args) == 6 and attention(graph).target.interleaved == interleaved
    assert not any(
        node.name in ("aten.neg", "aten.cat", "aten.stack") and node.shape[1] == HEADS for node in graph.nodes
    )
    for native in (False, True):
        got = run(graph, dtype, native)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def wrong_signs(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((x[..., half:], -x[..., :half]), dim=-1)


def odd_slice(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((-x[..., 7:], x[..., :7]), dim=-1)


def pairs_of_wrong_signs(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((x[..., 1::2], -x[..., 0::2]), dim=-1).flatten(-2)


def pairs_unturned(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 0::2], x[..., 1::2]), dim=-1).flatten(-2)


def pairs_in_halves(x: torch.Tensor) -> torch.Tensor:
    return torch.cat((-x[..., 1::2], x[..., 0::2]), dim=-1)


def of_another(x: torch.Tensor) -> torch.Tensor:
    return halves(x + 1)


def rest_first(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    turned = glm(x, cos, sin)
    return torch.cat([turned[..., SIZE // 2 :], turned[..., : SIZE // 2]], -1)


def in_the_middle(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = (t.to(x.dtype).unsqueeze(1)[..., : SIZE // 2] for t in (cos, sin))
    some, rest = x[..., SIZE // 2 :], x[..., SIZE // 2 :]
    return torch.cat([some * cos + halves(some) * sin, rest], -1)


def rest_of_the_front(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return torch.cat([glm(x, cos, sin)[..., : SIZE // 2], x[..., : SIZE // 2]], -1)


def untaken_rest(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = (t.to(x.dtype).unsqueeze(1)[..., : SIZE // 2] for t in (cos, sin))
    first = x[..., : SIZE // 2]
    return torch.cat([first * cos + halves(first) * sin, x[..., : SIZE // 2]], -1)


def by_head(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    of_heads = torch.arange(1, 1 + HEADS)[None, :, None, None] / HEADS
    cos, sin = ((t.unsqueeze(1) * of_heads).to(x.dtype) for t in (cos, sin))
    return x * cos + halves(x) * sin


def rounded_sines(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return (x * cos.unsqueeze(1) + halves(x) * sin.to(x.dtype).unsqueeze(1)).to(x.dtype)


def rounded_products(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    cos, sin = (t.to(x.dtype).unsqueeze(1) for t in (cos, sin))
    return ((x * cos).float() + (halves(x) * sin).float()).to(x.dtype)


NEAR_MISSES = {
    **{f.__name__: plain(f) for f in (wrong_signs, odd_slice, pairs_of_wrong_signs, pairs_unturned, pairs_in_halves)},
    **{f.__name__: f for f in (rest_first, rest_of_the_front, untaken_rest, in_the_middle, by_head)},
    "of another": plain(of_another),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_other_operations_are_not_a_rotation(name: str, dtype: torch.dtype) -> None:
    graph = recorded(NEAR_MISSES[name], dtype)
    expected = run(graph, dtype, native=False)
    fuse(graph, lambda _old, _new: None)
    assert len(attention(graph).args) == 4
    for native in (False, True):
        got = run(graph, dtype, native)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.parametrize("turn", [rounded_sines, rounded_products])
def test_rounded_products_are_not_a_float32_rotation(turn: Turn) -> None:
    graph = recorded(turn, torch.bfloat16)
    fuse(graph, lambda _old, _new: None)
    assert len(attention(graph).args) == 4


def test_different_rotations_of_queries_and_keys_stay() -> None:
    for other in (plain(pairs), olmo2):
        graph = recorded(plain(halves), torch.bfloat16, other)
        fuse(graph, lambda _old, _new: None)
        assert len(attention(graph).args) == 4
