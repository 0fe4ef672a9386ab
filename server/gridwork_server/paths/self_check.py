"""Compares a path with plain `forward()` on a few tokens, before the model becomes ready."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loguru import logger

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.errors import PathError
from gridwork_server.paths.base import ModelPath
from gridwork_server.paths.sequence_table import SequenceTable

if TYPE_CHECKING:
    from gridwork_server.paths.caller import Caller
    from gridwork_server.paths.seq2seq import Seq2SeqCaller

_PROMPTS = (7, 4)
"""Number of prompt tokens of each sequence."""

_DECODES = ((0,), (0, 1), (0, 1), (1,))
"""Sequences that decode in each step: the second joins after the first has begun, and continues after it has left."""

_NUM_DECODED = 3

_LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=16, max_sequences=2, max_total_tokens=16)
_NUM_BLOCKS = 8


def _limits(block_size: int) -> tuple[pb.WarmupRequest, int]:
    """Limits for blocks of another size, and the number of blocks of a sequence."""
    limits = pb.WarmupRequest()
    limits.CopyFrom(_LIMITS)
    limits.block_size_tokens = block_size
    return limits, -(-limits.max_total_tokens // block_size)


_UNWRITTEN_VALUE = 100.0
"""Initial values of the cache, which show in the result if anything attends to them. Initial keys are 0, so that any
query that can see them gives them weight."""


_FLOAT32_TOLERANCE = 2e-3
"""Largest root mean square of a row's differences in float32, as a share of the logits' standard deviation."""

_TOLERANCE = {torch.float32: _FLOAT32_TOLERANCE, torch.float16: 0.05, torch.bfloat16: 0.15}
"""Tolerance for results that may be rounded differently, by dtype."""

_JOINT_DECODE_ROWS = ((2, 3), (5, 6))
"""Rows of the steps that both sequences decode in, two of each sequence. An error that reaches one of the two reaches
both."""


def sample_tokens(vocab_size: int, seed: int = 0) -> list[np.ndarray]:
    """Sequences to compare on, int32. Their ids come from the middle of the vocabulary, where no special tokens are,
    and are all different if the vocabulary is large enough."""
    generator = np.random.default_rng(seed)
    low, high = vocab_size // 4, max(vocab_size // 4 + 1, vocab_size * 3 // 4)
    total = sum(_PROMPTS) + len(_PROMPTS) * _NUM_DECODED
    tokens = low + generator.choice(high - low, total, replace=high - low < total)
    return np.split(tokens.astype(np.int32), [_PROMPTS[0] + _NUM_DECODED])


@torch.inference_mode()
def plain_logits(
    caller: "Caller | Seq2SeqCaller", sequences: list[np.ndarray], dtype: torch.dtype, num_ranks: int
) -> torch.Tensor:
    """Logits of plain `forward()` after each prompt and each decoded token: float32 `[8, vocab_size]`.

    A model that looks ahead gives other logits for a longer text, so each of its rows is computed separately. The same
    is done over several ranks: only the first has logits to tell by, and all ranks must compute the same.
    """
    rows = []
    for sequence, prompt in zip(sequences, _PROMPTS, strict=True):
        first = caller.plain(sequence[:prompt], prompt)[-1].float()
        count = len(sequence) + 1 - prompt
        if num_ranks == 1:
            together = caller.plain(sequence, prompt)[-count:].float()
            if len(together) == count and _nearly_equal(first, together[0], _TOLERANCE[dtype]):
                rows.append(together)
                continue
        lengths = range(prompt + 1, len(sequence) + 1)
        rest = [caller.plain(sequence[:length], prompt)[-1].float() for length in lengths]
        rows.append(torch.stack([first, *rest]))
    return torch.cat(rows)


@torch.inference_mode()
def whole_logits(caller: "Caller | Seq2SeqCaller", sequences: list[np.ndarray]) -> torch.Tensor:
    """Like plain_logits, with each whole sequence in one call; fewer rows from models that give only the last
    token's."""
    logits = [caller.plain(sequence, prompt) for sequence, prompt in zip(sequences, _PROMPTS, strict=True)]
    return torch.cat([rows[-_NUM_DECODED - 1 :].float() for rows in logits])


def _nearly_equal(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Tells whether two rows of logits differ by no more than rounding."""
    known = torch.isfinite(one) & torch.isfinite(other)
    if not known.any():
        return True
    spread = float(one[known].std())
    return float((one - other)[known].square().mean().sqrt()) <= tolerance * spread


@torch.inference_mode()
def path_logits(
    path: ModelPath,
    sequences: list[np.ndarray],
    block_size: int = 4,
    during: Callable[[list[int]], AbstractContextManager[None]] = lambda _tokens: nullcontext(),
) -> torch.Tensor:
    """Logits by a path, in the order of plain_logits: the first prompt in two chunks, then both sequences together.
    Their blocks are shuffled, and unwritten places of the cache hold values far from any real one. during: makes a
    context for each step from the step's tokens."""
    limits, blocks = _limits(block_size)
    table = SequenceTable(2, limits.max_total_tokens, block_size, 2 * blocks)
    path.allocate(limits, 2 * blocks)
    path.spoil_cache(_UNWRITTEN_VALUE)
    order = np.random.default_rng(1).permutation(2 * blocks)
    rows: dict[tuple[int, int], torch.Tensor] = {}

    def step(ids: list[int], counts: list[int]) -> None:
        batch = table.batch(np.array(ids), np.array(counts))
        with during(batch.input_ids.tolist()):
            logits, kept = path.forward(batch, table, np.array([], dtype=np.int64))
        for row, token in zip(logits, kept.tolist(), strict=True):
            rows[int(batch.sequence_ids[batch.row[token]]), int(batch.positions[token])] = row.float()
        table.computed(batch)

    for id, sequence in enumerate(sequences):
        prompt = sequence[: _PROMPTS[id]]
        table.admit(pb.NewSequence(id=id, token_ids=prompt.tolist(), num_prompt_tokens=len(prompt)))
        table.append_blocks(np.array([id]), np.array([blocks]), order[blocks * id : blocks * (id + 1)])
        first = len(prompt) // 2 if id == 0 else len(prompt)
        step([id], [first])
        if first < len(prompt):
            step([id], [len(prompt) - first])
    num_decoded = [0, 0]
    for ids in _DECODES:
        tokens = [sequences[id][_PROMPTS[id] + num_decoded[id]] for id in ids]
        table.append_tokens(np.array(ids), np.array(tokens))
        step(list(ids), [1] * len(ids))
        for id in ids:
            num_decoded[id] += 1
    path.release(np.array([0, 1]))
    return torch.stack([rows[key] for key in sorted(rows)])


_NUM_GENERATED = 4


@torch.inference_mode()
def generated_tokens(model: Any, sequences: list[np.ndarray], device: torch.device) -> list[list[int]]:
    """Tokens that `generate()` gives for each sequence. Passes on its exceptions."""
    results = []
    for sequence in sequences:
        tokens = torch.from_numpy(sequence.astype(np.int64))[None].to(device)
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=_NUM_GENERATED,
            min_new_tokens=_NUM_GENERATED,
            do_sample=False,
            eos_token_id=None,
            forced_eos_token_id=None,
            pad_token_id=0,
        )
        results.append(out[0, -_NUM_GENERATED:].tolist())
    return results


@torch.inference_mode()
def path_tokens(path: ModelPath, sequences: list[np.ndarray]) -> list[list[int]]:
    """Tokens that a path gives for each sequence, one sequence after the other."""
    path.allocate(_LIMITS, _NUM_BLOCKS)
    results = []
    for sequence in sequences:
        table = SequenceTable(2, _LIMITS.max_total_tokens, _LIMITS.block_size_tokens, _NUM_BLOCKS)
        table.admit(pb.NewSequence(id=0, token_ids=sequence.tolist(), num_prompt_tokens=len(sequence)))
        count, tokens = len(sequence), []
        for _ in range(_NUM_GENERATED):
            batch = table.batch(np.array([0]), np.array([count]))
            logits, _kept = path.forward(batch, table, np.array([], dtype=np.int64))
            table.computed(batch)
            tokens.append(int(logits[0].argmax()))
            table.append_tokens(np.array([0]), np.array(tokens[-1:]))
            count = 1
        path.release(np.array([0]))
        results.append(tokens)
    return results


def compare_generated(path: ModelPath, expected: list[list[int]], sequences: list[np.ndarray]) -> None:
    """Raises PathError when a path's greedy tokens differ from those of `generate()`."""
    if path_tokens(path, sequences) != expected:
        raise PathError("its tokens are not those of generate()")


@dataclass(frozen=True)
class Differences:
    """Differences between two computations of the same logits."""

    rows: torch.Tensor
    """Root mean square of each row's differences, float32 `[num_rows]`, as a share of the logits' standard
    deviation."""

    @property
    def largest(self) -> float:
        """Largest difference of any row; NaN when logits are not numbers where they should be."""
        return float(self.rows.max())

    @property
    def in_every_row(self) -> float:
        """Size of an error that is about as large in every row that it reaches. A few rows that rounding changes by
        much, where an expert or a key was chosen by a tiny margin, do not count."""
        return max(float(self.rows[list(pair)].min()) for pair in _JOINT_DECODE_ROWS)

    def check_exact(self) -> None:
        """Raises PathError when any row differs by more than float32 rounding."""
        if not self.largest <= _FLOAT32_TOLERANCE:
            raise PathError(f"its logits differ from those of plain forward() by {self.largest:.2g} of their spread")

    def __str__(self) -> str:
        return str([round(row, 5) for row in self.rows.tolist()])


def differences(given: torch.Tensor, expected: torch.Tensor) -> Differences | None:
    """Compares logits, `[num_rows, vocab_size]` each; None when no expected logit is a number. Raises PathError when
    their shapes differ."""
    if given.shape != expected.shape:
        raise PathError(f"it gives logits of shape {list(given.shape)} where forward() gives {list(expected.shape)}")
    known = torch.isfinite(expected)
    if not known.any():
        return None
    spread = float(expected[known].std())
    difference = torch.where(known, given - expected, 0)
    return Differences(difference.square().mean(-1).sqrt() / max(spread, 1e-6))


def compare(
    path: ModelPath, expected: torch.Tensor, sequences: list[np.ndarray], dtype: torch.dtype, block_size: int = 4
) -> Differences | None:
    """Compares a path's logits with those of plain `forward()`; None when the model's own logits are not numbers.
    Raises PathError for logits of another shape. In float32, where rounding is negligible, it also raises PathError for
    logits that differ. block_size: of the cache."""
    found = differences(path_logits(path, sequences, block_size), expected)
    if found is not None:
        logger.debug(f"rows differ by {found} of the logits' spread")
        if dtype == torch.float32:
            found.check_exact()
    return found
