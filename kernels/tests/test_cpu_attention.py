"""The compiled paged attention against the definition of attention, token by token."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from gridwork_kernels import cpu_attention, cpu_library

NUM_BLOCKS = 40

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")


@dataclass
class Problem:
    """Sequences in a cache, whose last tokens are queries."""

    query: torch.Tensor  # [tokens, heads, key_size]
    keys: list[torch.Tensor]  # of each sequence: [length, kv_heads, key_size]
    values: list[torch.Tensor]
    tables: torch.Tensor
    sequence: torch.Tensor
    length: torch.Tensor
    block_size: int

    @staticmethod
    def of(
        lengths: list[tuple[int, int]],
        heads: tuple[int, int] = (4, 2),
        sizes: tuple[int, int] = (32, 32),
        dtype: torch.dtype = torch.float32,
        block_size: int = 16,
    ) -> "Problem":
        """lengths: queries and length of each sequence; heads: of queries and of keys; sizes: of a key and a value."""
        torch.manual_seed(len(lengths) * heads[0] + sizes[0])
        counts = [-(-length // block_size) for _, length in lengths]
        blocks = torch.randperm(max(NUM_BLOCKS, sum(counts)))
        tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
        first = 0
        for row, count in enumerate(counts):
            tables[row, :count] = blocks[first : first + count]
            first += count
        rows = [row for row, (count, _) in enumerate(lengths) for _ in range(count)]
        ends = [end for count, length in lengths for end in range(length - count + 1, length + 1)]
        return Problem(
            query=torch.randn(len(rows), heads[0], sizes[0]).to(dtype),
            keys=[torch.randn(length, heads[1], sizes[0]).to(dtype) for _, length in lengths],
            values=[torch.randn(length, heads[1], sizes[1]).to(dtype) for _, length in lengths],
            tables=tables,
            sequence=torch.tensor(rows, dtype=torch.int32),
            length=torch.tensor(ends, dtype=torch.int32),
            block_size=block_size,
        )

    def slots(self, row: int, positions: torch.Tensor) -> torch.Tensor:
        blocks = self.tables[row].long()[positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size

    def caches(self, upto: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Caches with the sequences' keys and values, or their first `upto`, and NaN elsewhere."""
        kv_heads, key_size = self.keys[0].shape[1:]
        num_blocks = max(NUM_BLOCKS, int(self.tables.max()) + 1)
        keys, values = cpu_attention.allocate(
            num_blocks, self.block_size, kv_heads, key_size, self.values[0].shape[2], self.query.dtype
        )
        keys.fill_(torch.nan), values.fill_(torch.nan)
        for row, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            slots = self.slots(row, torch.arange(len(key) if upto is None else upto[row]))
            block, offset = (index[:, None, None] for index in (slots // self.block_size, slots % self.block_size))
            heads, together = torch.arange(kv_heads)[:, None], keys.shape[-1]
            dims, value_dims = torch.arange(-(-key_size // together) * together), torch.arange(value.shape[2])
            padded = torch.nn.functional.pad(key[: len(slots)], (0, len(dims) - key_size))
            keys[block, heads, dims // together, offset, dims % together] = padded
            values[block, heads, offset // together, value_dims, offset % together] = value[: len(slots)]
        return keys, values

    def attend(self, tokens: slice = slice(None), caches: Any = None, **options: Any) -> torch.Tensor:
        keys, values = caches or self.caches()
        return cpu_attention.paged_attention(
            self.query[tokens],
            None,
            None,
            keys,
            values,
            self.tables,
            self.sequence[tokens],
            self.length[tokens],
            torch.zeros(0, dtype=torch.int64),
            **{"scale": 0.2, **options},
        )

    def definition(
        self,
        scale: float = 0.2,
        window: int = 0,
        chunk: int = 0,
        softcap: float = 0.0,
        sinks: torch.Tensor | None = None,
        slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The definition of attention, in float64."""
        results = []
        for token, row in enumerate(self.sequence.tolist()):
            end = int(self.length[token])
            begin = (end - 1) // chunk * chunk if chunk else max(0, end - window) if window else 0
            group = self.query.shape[1] // self.keys[row].shape[1]
            k = self.keys[row][begin:end].double().repeat_interleave(group, 1)
            v = self.values[row][begin:end].double().repeat_interleave(group, 1)
            scores = torch.einsum("hd,lhd->hl", self.query[token].double(), k) * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            if slopes is not None:
                scores = scores - slopes.double()[:, None] * (end - 1 - torch.arange(begin, end))
            if sinks is not None:
                scores = torch.cat([scores, sinks[:, None].double()], 1)
            weights = scores.softmax(-1)[:, : end - begin]
            results.append(torch.einsum("hl,lhd->hd", weights, v))
        return torch.stack(results)


# Decodes, and chunks of prefill at the beginning of a sequence and later; contexts of one segment and of several.
LENGTHS = [(1, 1), (1, 16), (30, 30), (1, 257), (9, 300), (1, 700), (33, 40)]


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    tolerances = {
        torch.float32: {"rtol": 1e-5, "atol": 2e-5},
        torch.bfloat16: {"rtol": 2**-7, "atol": 2**-8},
        torch.float16: {"rtol": 2**-10, "atol": 1e-3},
    }
    torch.testing.assert_close(out.double(), expected, **tolerances[out.dtype])


@pytest.mark.parametrize("dtype", cpu_attention.DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(9, 3), (8, 1), (4, 4), (14, 2), (40, 1)], ids=str)
@pytest.mark.parametrize("sizes", [(64, 64), (16, 16), (20, 28), (192, 128), (256, 256)], ids=str)
def test_equals_the_definition(dtype: torch.dtype, heads: tuple[int, int], sizes: tuple[int, int]) -> None:
    problem = Problem.of(LENGTHS, heads, sizes, dtype)
    assert_close(problem.attend(), problem.definition())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"window": 7},
        {"window": 300},
        {"chunk": 32},
        {"softcap": 5.0},
        {"sinks": torch.tensor([0.3, -2.0, 5.0, 0.0])},
        {"slopes": torch.tensor([0.5, 0.1, 0.0, 1.0])},
        {"window": 33, "softcap": 20.0, "sinks": torch.zeros(4), "slopes": torch.full((4,), 0.05)},
    ],
    ids=str,
)
def test_equals_the_definition_with_options(dtype: torch.dtype, options: dict[str, Any]) -> None:
    problem = Problem.of(LENGTHS, dtype=dtype)
    assert_close(problem.attend(**options), problem.definition(**options))


@pytest.mark.parametrize("block_size", [1, 4, 24, 32, 512])
def test_blocks_of_any_size(block_size: int) -> None:
    problem = Problem.of([(3, 11), (1, 300), (20, 50)], block_size=block_size)
    assert_close(problem.attend(), problem.definition())


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Sets the number of threads, which decides how work is cut: into heads, groups of heads, or segments."""
    cpu_library.set_num_threads(request.param)
    yield request.param
    cpu_library.set_num_threads(1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", cpu_attention.DTYPES, ids=str)
@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize(
    ("heads", "sizes", "scale"),
    [
        ((9, 3), (64, 64), 1),
        ((2, 2), (64, 32), 1),
        ((4, 2), (48, 80), 1),
        ((8, 2), (96, 64), 1),
        ((7, 1), (64, 64), 1),
        ((9, 3), (64, 64), 1e-38),  # values too small for normal numbers
    ],
    ids=str,
)
def test_a_token_does_not_depend_on_its_batch(
    dtype: torch.dtype, window: int, heads: tuple[int, int], sizes: tuple[int, int], scale: float
) -> None:
    problem = Problem.of([*LENGTHS, *[(1, 20 + i) for i in range(60)], (100, 400)], heads, sizes, dtype)
    problem.values = [value * scale for value in problem.values]
    caches = problem.caches()
    together = problem.attend(caches=caches, window=window)
    for token in (0, 1, 2, 20, 31, 33, 39, 40, 41, 50, 74, 90, 136, 160, 199, 200, 235):
        alone = problem.attend(slice(token, token + 1), caches=caches, window=window)
        assert torch.equal(alone[0], together[token])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("length", [130, 300, 5000])
def test_a_long_sequence_is_the_same_alone_and_in_a_batch(length: int) -> None:
    problem = Problem.of([(1, length), *[(1, 3)] * 40], (8, 4), (32, 32), torch.bfloat16)
    alone = problem.attend(slice(0, 1))
    assert torch.equal(alone[0], problem.attend()[0])
    cpu_library.set_num_threads(1)
    assert torch.equal(alone, problem.attend(slice(0, 1)))
    assert_close(alone, problem.definition()[:1])


def test_keys_and_values_may_be_separate_tensors() -> None:
    problem = Problem.of([(1, 20 + 9 * i) for i in range(30)], (6, 3), (32, 16), torch.bfloat16)
    keys, values = problem.caches()
    apart = problem.attend(caches=(keys.clone(), values.clone()))
    assert torch.equal(problem.attend(caches=(keys, values)), apart)


def test_nan_shows_within_the_length_only() -> None:
    problem = Problem.of([(2, 6)], (2, 1), (16, 16))
    caches = problem.caches()
    slot = int(problem.slots(0, torch.tensor([5]))[0])
    caches[0][slot // 16, :, :, slot % 16] = torch.nan
    out = problem.attend(caches=caches)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@pytest.mark.parametrize("dtype", cpu_attention.DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 16, 32, 20])
@pytest.mark.parametrize("wide", [False, True], ids=["angles of the type", "angles in float32"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_new_keys_are_rotated_and_written(dtype: torch.dtype, size: int, wide: bool, interleaved: bool) -> None:
    """size: number of dimensions that are rotated."""
    problem = Problem.of([(1, 20), (5, 37), (18, 18)], dtype=dtype)
    lengths, counts = [20, 37, 18], [1, 5, 18]
    cos, sin = (f(torch.rand(24, size) * 6) for f in (torch.cos, torch.sin))
    if not wide:
        cos, sin = cos.to(dtype), sin.to(dtype)

    def turn(x: torch.Tensor) -> torch.Tensor:
        if interleaved:
            return torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
        return torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        some, rest = x[..., :size], x[..., size:]
        turned = (some * cos[:, None] + turn(some) * sin[:, None]).to(dtype)
        return torch.cat([turned, rest], -1)

    new = [(key[-n:], value[-n:]) for key, value, n in zip(problem.keys, problem.values, counts, strict=True)]
    key, value = torch.cat([k for k, _ in new]), torch.cat([v for _, v in new])
    pairs = zip(lengths, counts, strict=True)
    slots = torch.cat([problem.slots(i, torch.arange(n - c, n)) for i, (n, c) in enumerate(pairs)])
    caches = problem.caches([n - c for n, c in zip(lengths, counts, strict=True)])
    # Strides of slices of one product.
    wide = torch.zeros(24, 8, 32, dtype=dtype)
    wide[:, :4], wide[:, 4:6], wide[:, 6:] = problem.query, key, value
    out = cpu_attention.paged_attention(
        wide[:, :4],
        wide[:, 4:6],
        wide[:, 6:],
        *caches,
        problem.tables,
        problem.sequence,
        problem.length,
        slots,
        scale=0.2,
        **({"cos": cos, "sin": sin, "interleaved": interleaved} if size else {}),
    )
    problem.query, rotated = rotate(problem.query), rotate(key)
    for k, part in zip(problem.keys, rotated.split(counts), strict=True):
        k[-len(part) :] = part
    assert_close(out, problem.definition())
    expected_keys, expected_values = problem.caches()
    assert torch.equal(caches[0].nan_to_num(), expected_keys.nan_to_num()), "bit for bit as in PyTorch"
    assert torch.equal(caches[1].nan_to_num(), expected_values.nan_to_num())
