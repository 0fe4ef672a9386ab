"""Compares a path with plain `forward()` on a few tokens, before a model is called ready."""

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
"""Tokens of the sequences' prompts."""

_DECODES = ((0,), (0, 1), (0, 1), (1,))
"""Which of them decode in each step: the second joins when the first has begun to, and goes on when it has left."""

_NUM_DECODED = 3

_LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=16, max_sequences=2, max_total_tokens=16)
_NUM_BLOCKS = 8


def _limits(block_size: int) -> tuple[pb.WarmupRequest, int]:
    """The same for blocks of another size, and how many of them a sequence takes."""
    limits = pb.WarmupRequest()
    limits.CopyFrom(_LIMITS)
    limits.block_size_tokens = block_size
    return limits, -(-limits.max_total_tokens // block_size)


_NEVER_WRITTEN = 100.0
"""What values of the cache are before they are written: anything that attends to one shows it. Their keys are 0, which
are seen by whoever looks."""


_EXACT = 2e-3
"""Largest root mean square of a row's differences in float32, as a share of the logits' own standard deviation."""

_NEARLY_EQUAL = {torch.float32: _EXACT, torch.float16: 0.05, torch.bfloat16: 0.15}
"""The same for what may be rounded differently."""

_WITH_JOINT_DECODES = ((2, 3), (5, 6))
"""Rows of the steps that both sequences decode in: of each sequence there are two, and an error that reaches one of
them reaches both."""


def sample_tokens(vocab_size: int) -> list[np.ndarray]:
    """The sequences to compare on: int32, of the middle of the vocabulary, where no special tokens are. No two tokens
    are the same, where the vocabulary has that many."""
    generator = np.random.default_rng(0)
    low, high = vocab_size // 4, max(vocab_size // 4 + 1, vocab_size * 3 // 4)
    total = sum(_PROMPTS) + len(_PROMPTS) * _NUM_DECODED
    tokens = low + generator.choice(high - low, total, replace=high - low < total)
    return np.split(tokens.astype(np.int32), [_PROMPTS[0] + _NUM_DECODED])


@torch.inference_mode()
def plain_logits(
    caller: "Caller | Seq2SeqCaller", sequences: list[np.ndarray], dtype: torch.dtype, num_ranks: int
) -> torch.Tensor:
    """What plain `forward()` gives after each prompt and each token that is decoded: float32 `[8, vocab_size]`.

    A model that looks ahead gives other logits for a longer text: there every row is computed by itself. So it is over
    several ranks, of which only the first has logits to tell by, while all must compute the same.
    """
    rows = []
    for sequence, prompt in zip(sequences, _PROMPTS, strict=True):
        first = caller.plain(sequence[:prompt], prompt)[-1].float()
        count = len(sequence) + 1 - prompt
        if num_ranks == 1:
            together = caller.plain(sequence, prompt)[-count:].float()
            if len(together) == count and _nearly_equal(first, together[0], _NEARLY_EQUAL[dtype]):
                rows.append(together)
                continue
        lengths = range(prompt + 1, len(sequence) + 1)
        rest = [caller.plain(sequence[:length], prompt)[-1].float() for length in lengths]
        rows.append(torch.stack([first, *rest]))
    return torch.cat(rows)


@torch.inference_mode()
def whole_logits(caller: "Caller | Seq2SeqCaller", sequences: list[np.ndarray]) -> torch.Tensor:
    """The same as plain_logits, of every sequence at once; fewer rows from models that give only the last token's."""
    logits = [caller.plain(sequence, prompt) for sequence, prompt in zip(sequences, _PROMPTS, strict=True)]
    return torch.cat([rows[-_NUM_DECODED - 1 :].float() for rows in logits])


def _nearly_equal(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Whether two rows of logits differ by no more than rounding does."""
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
    """The same by a path: the first prompt in two pieces, then both sequences together. Their blocks lie in no order,
    and what nobody has written there yet is far from what anybody would. during: entered for each step, with its
    tokens."""
    limits, blocks = _limits(block_size)
    table = SequenceTable(2, limits.max_total_tokens, block_size, 2 * blocks)
    path.allocate(limits, 2 * blocks)
    path.spoil_cache(_NEVER_WRITTEN)
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
    """What `generate()` gives for each sequence. Raises whatever it raises."""
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
    """The same by a path, one sequence after the other."""
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
    """Raises PathError when a path's greedy tokens are not those of `generate()`."""
    if path_tokens(path, sequences) != expected:
        raise PathError("its tokens are not those of generate()")


@dataclass(frozen=True)
class Differences:
    """How much two computations of the same logits differ."""

    rows: torch.Tensor
    """float32 `[num_rows]`: root mean square of each row's differences, as a share of the logits' standard
    deviation."""

    @property
    def largest(self) -> float:
        """Of any row; NaN where logits are no numbers that should be."""
        return float(self.rows.max())

    @property
    def in_all(self) -> float:
        """What no error that is about as large in every row that it reaches can stay below: few rows that rounding
        changes much, since an expert or a key is chosen by a hair, do not count."""
        return max(float(self.rows[list(pair)].min()) for pair in _WITH_JOINT_DECODES)

    def check_exact(self) -> None:
        """Raises PathError when any row differs by more than float32 is rounded."""
        if not self.largest <= _EXACT:
            raise PathError(f"its logits differ from those of plain forward() by {self.largest:.2g} of their spread")

    def __str__(self) -> str:
        return str([round(row, 5) for row in self.rows.tolist()])


def differences(given: torch.Tensor, expected: torch.Tensor) -> Differences | None:
    """Logits `[num_rows, vocab_size]` each; None when none of those expected is a number. Raises PathError when their
    shapes differ."""
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
    """How a path's logits differ from those of plain `forward()`; None for not at all, as far as can be told from a
    model whose own answers are numbers. Raises PathError for logits of another shape, and in float32, where nothing is
    left to rounding, for any that differ. block_size: of the cache."""
    found = differences(path_logits(path, sequences, block_size), expected)
    if found is not None:
        logger.debug(f"rows differ by {found} of the logits' spread")
        if dtype == torch.float32:
            found.check_exact()
    return found
