"""Looks for results that depend on more than a sequence's own tokens: on neighbours, on where a prompt is cut, and on
limits of the config that are crossed.

The comparison with plain `forward()` in `self_check` is of few tokens, fewer than windows and contexts of real models
have. Three things are looked for here besides:

- Modules whose results depend on the length of a call are found by calling them alone, at any length (`length_probe`).
- A neighbour's tokens are given positions beyond every limit of the config, while its keys stay where they are: the
  logits of the sequence beside it must stay as they were. That takes two steps of few tokens.
- Where the model is small enough for it, a prompt longer than the limit is computed in pieces beside a short one, and
  both are compared with plain `forward()`.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loguru import logger

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.errors import PathError
from gridwork_server.lengths.call_lengths import CallLengths, watch
from gridwork_server.lengths.probe import lengths_to_try
from gridwork_server.paths.base import ModelPath
from gridwork_server.paths.caller import Caller
from gridwork_server.paths.sequence_table import SequenceTable

if TYPE_CHECKING:
    from gridwork_server.parallel.group import RankGroup
    from gridwork_server.paths.seq2seq import Seq2SeqCaller

_NUM_TOKENS = 8
"""Of the sequence beside which others are computed."""

_NUM_NEIGHBOURS = 8

_COMPUTED = 2 * 10**10
"""Parameters times tokens that are computed at most to cross a limit: a fraction of a second."""

_LONGEST = 512
"""Longest limit that is crossed with a prompt, in tokens."""

_SAME = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Largest difference of a row's logits, as a share of their spread, where a neighbour alone has changed. Rounding of a
mixture of experts may depend on it; a half of the rows is never affected."""

_RIGHT = {torch.float32: 0.02, torch.float16: 0.3, torch.bfloat16: 0.3}
"""The same for a path and plain `forward()`. What is computed wrongly differs by about 1."""


def recomputing_length(model: Any) -> int:
    """Length at which `generate()` drops the keys that it has and computes a sequence anew, as models with two sets of
    rotary frequencies do; 0: it never does. Found by asking what prepares the model's inputs."""
    from transformers import GenerationMixin

    prepare = getattr(model, "prepare_inputs_for_generation", None)
    if prepare is None or type(model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
        return 0
    if _drops_keys(model, prepare, 2):
        return 0  # it has no use for keys, at any length
    return next((length for length in lengths_to_try(model.config) if _drops_keys(model, prepare, length)), 0)


def _drops_keys(model: Any, prepare: Any, length: int) -> bool:
    """Whether keys of `length - 1` tokens are dropped for a sequence of this length."""
    from transformers.cache_utils import DynamicCache

    class Filled(DynamicCache):
        def __len__(self) -> int:
            return 1

        def get_seq_length(self, *_: Any, **__: Any) -> int:
            return length - 1

    tokens = torch.zeros(1, length, dtype=torch.int64)
    cache = Filled(config=model.config)
    try:
        inputs = prepare(
            tokens,
            past_key_values=cache,
            attention_mask=torch.ones_like(tokens),
            next_sequence_length=1,
            is_first_iteration=False,
            use_cache=True,
        )
    except Exception:  # a model's own code may raise anything
        return False
    return inputs.get("past_key_values") is not cache


@torch.inference_mode()
def find_lengths(caller: "Caller | Seq2SeqCaller", tokens: np.ndarray) -> CallLengths | None:
    """What of a model depends on how many tokens are computed together; from now on, every token gets what is its own.
    tokens: int32, a sequence that plain `forward()` computes to see."""
    length = len(tokens)
    config: Any = caller.model.config
    if config.is_encoder_decoder:
        # As many for the decoder, with its start token, as for the encoder.
        length = (length + 1) // 2
        tokens = tokens[: 2 * length - 1]
    with watch(caller.model, length) as found:
        caller.plain(tokens, length)
    if not found:
        return None
    found[0].recompute_at = recomputing_length(caller.model)
    return found[0]


class DependenceCheck:
    """All that is compared of a path besides a few tokens with plain `forward()`."""

    def __init__(
        self, caller: "Caller | Seq2SeqCaller", dtype: torch.dtype, tokens: np.ndarray, group: "RankGroup"
    ) -> None:
        """tokens: int32, of a sequence to compare on."""
        self._caller, self._dtype, self._tokens, self._group = caller, dtype, tokens, group
        self._crossing: Crossing | None = None

    def prepare(self) -> None:
        """Computes what plain `forward()` gives, with the model's own attention."""
        lengths = self._caller.lengths
        border = lengths.rule.border if lengths else 0
        parameters = sum(parameter.numel() for parameter in self._caller.model.parameters())
        # Ranks may have more and less, and must compute the same.
        most = self._group.minimum(_COMPUTED // max(1, parameters))
        self._crossing = crossing_of(self._caller, border, self._tokens, self._dtype, most)

    def check(self, path: ModelPath) -> None:
        """Rank 0 decides, which alone has whole logits. Raises PathError on all ranks."""
        found: PathError | None = None
        # Every rank computes all of it, whatever it finds: the others wait for its sums.
        checks: list[Callable[[], None]] = [lambda: check_neighbours(path, self._caller, self._tokens, self._dtype)]
        if self._crossing is not None:
            checks.append(functools.partial(self._crossing.check, path))
        for compare in checks:
            try:
                compare()
            except PathError as error:
                found = found or error
        if not self._group.is_leader:
            found = None
        if self._group.minimum(0 if found else 1) == 0:
            raise found or PathError("rank 0 found that a sequence's logits depend on others, or on its length")


@torch.inference_mode()
def check_neighbours(path: ModelPath, caller: "Caller | Seq2SeqCaller", tokens: np.ndarray, dtype: torch.dtype) -> None:
    """Raises PathError when a sequence's logits change with the positions of the tokens beside it. tokens: int32, to
    choose from. Does nothing where the model is not given positions, or computes one sequence at a time."""
    compute: Callable[[np.ndarray], torch.Tensor]
    if path.takes_positions:
        compute = functools.partial(_beside, path, np.resize(tokens, _NUM_TOKENS + _NUM_NEIGHBOURS))
    elif path.name == "batched" and isinstance(caller, Caller) and caller.takes("position_ids"):
        if caller.lengths is not None and caller.lengths.by_call:
            return  # such sequences are never computed together
        compute = functools.partial(_in_rows, caller, np.resize(tokens, _NUM_TOKENS))
    else:
        return
    before = compute(np.arange(_NUM_NEIGHBOURS))
    for far in _far_positions(caller.model.config, caller.device):
        try:
            after = compute(far)
        except Exception as error:  # as of tables of positions, which end somewhere
            logger.debug(f"positions up to {far.max()} cannot be computed: {error}")
            continue
        differing = _differences(after, before) > _SAME[dtype]
        # The first token attends to itself alone, wherever it stands.
        if int(differing.sum()) > _NUM_TOKENS // 2:
            raise PathError(f"logits of a sequence depend on how long others are (tried with {far.max() + 1} tokens)")
        return


def _far_positions(config: Any, device: torch.device) -> list[np.ndarray]:
    """int64: positions for the neighbours, the farthest first."""
    lengths = lengths_to_try(config)
    most = lengths[-1] if lengths else 0
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if device.type != "cpu":
        # A position beyond a table ends a GPU's process.
        most = context if isinstance(context, int) else 0
    starts = [most, *([context] if isinstance(context, int) and context < most else []), most // 4, most // 64]
    return [start - _NUM_NEIGHBOURS + np.arange(_NUM_NEIGHBOURS) for start in starts if start > 2 * _NUM_NEIGHBOURS]


def _beside(path: ModelPath, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
    """Logits `[_NUM_TOKENS, vocab_size]` of a sequence beside others that have one token each, at these positions."""
    size, count = path.check_block_size, 1 + _NUM_NEIGHBOURS
    per_sequence = -(-_NUM_TOKENS // size)
    limits = pb.WarmupRequest(
        block_size_tokens=size, max_batch_tokens=len(tokens), max_sequences=count, max_total_tokens=_NUM_TOKENS
    )
    path.allocate(limits, count * per_sequence)
    table = SequenceTable(count, _NUM_TOKENS, size, count * per_sequence)
    ids = np.arange(count)
    for id in ids.tolist():
        own = tokens[:_NUM_TOKENS] if id == 0 else tokens[_NUM_TOKENS + id - 1 : _NUM_TOKENS + id]
        table.admit(pb.NewSequence(id=id, token_ids=own.tolist(), num_prompt_tokens=len(own)))
    table.append_blocks(ids, np.full(count, per_sequence), np.arange(count * per_sequence))
    batch = table.batch(ids, table.num_known[ids])
    at = np.concatenate([np.arange(_NUM_TOKENS), positions])
    logits = path.logits_at(batch, table, at)[:_NUM_TOKENS].float()
    path.release(ids)
    return logits


def _in_rows(caller: Caller, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
    """Logits `[_NUM_TOKENS, vocab_size]` of a sequence in a batch with another one at these positions."""
    input_ids = torch.from_numpy(np.stack([tokens, tokens[::-1]]).astype(np.int64)).to(caller.device)
    at = np.stack([np.arange(_NUM_TOKENS), positions])
    mask = torch.ones_like(input_ids)
    with caller.lengths.of(at + 1) if caller.lengths is not None else nullcontext():
        logits, _ = caller.with_cache(input_ids, None, mask, torch.from_numpy(at).to(caller.device), True)
    return logits[0].float()


def _differences(given: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """float `[rows]`: root mean square of each row's differences, as a share of the logits' standard deviation."""
    known = torch.isfinite(expected)
    if not known.any():
        return torch.zeros(len(expected))
    difference = torch.where(known, given - expected, 0)
    return difference.square().mean(-1).sqrt() / expected[known].std().clamp_min(1e-6)


@dataclass(frozen=True)
class Crossing:
    """Prompts of which one is longer than a limit, and what plain `forward()` gives for them."""

    limit: int
    prompts: list[np.ndarray]
    """int32 each."""
    expected: list[torch.Tensor]
    """float32 `[num_tokens, vocab_size]` each, or less rows: the last ones."""
    dtype: torch.dtype

    @torch.inference_mode()
    def check(self, path: ModelPath) -> None:
        """Raises PathError when a path gives something else, for the long one in pieces, and the others beside it."""
        for want, got in zip(self.expected, _in_pieces(path, self.prompts), strict=True):
            count = min(len(want), len(got))
            differences = _differences(got[-count:], want[-count:])
            known = differences[torch.isfinite(differences)]
            logger.debug(f"rows differ by {[round(row, 5) for row in known.tolist()]} of the logits' spread")
            if len(known) and float(known.median()) > _RIGHT[self.dtype]:
                raise PathError(f"its logits are not those of plain forward() beside or beyond {self.limit} tokens")


@torch.inference_mode()
def crossing_of(
    caller: "Caller | Seq2SeqCaller", border: int, tokens: np.ndarray, dtype: torch.dtype, most: int = _LONGEST
) -> Crossing | None:
    """What to cross a model's longest limit with. border: length up to which nothing depends on the length, 0 for none;
    tokens: int32, to choose from; most: longest limit that may be crossed. None: there is no limit within that."""
    most = min(_LONGEST, most)
    limit = max((limit for limit in {border, *_windows(caller.model.config)} if 2 < limit <= most), default=0)
    if limit == 0:
        return None
    long, short = limit + 5, 5
    generator = np.random.default_rng(1)
    prompts = [generator.choice(tokens, length) for length in (long, short)]
    try:
        expected = [caller.plain(prompt, len(prompt)).float() for prompt in prompts]
    except Exception as error:  # as of tables of positions that are shorter
        logger.debug(f"{long} tokens cannot be computed: {error}")
        return None
    return Crossing(limit, prompts, expected, dtype)


def _windows(config: Any) -> set[int]:
    """Lengths of windows and chunks that layers attend within."""
    text = config.get_text_config(decoder=True)
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size", "local_attention")
    values = (getattr(text, name, None) for name in names)
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool)}


def _in_pieces(path: ModelPath, prompts: list[np.ndarray]) -> list[torch.Tensor]:
    """Logits of every token of each prompt, by a path; the first prompt in three pieces, the others beside the last."""
    size = path.check_block_size
    longest = max(map(len, prompts)) + 1
    blocks = -(-longest // size)
    limits = pb.WarmupRequest(
        block_size_tokens=size, max_batch_tokens=2 * longest, max_sequences=len(prompts), max_total_tokens=longest
    )
    path.allocate(limits, len(prompts) * blocks)
    table = SequenceTable(len(prompts), longest, size, len(prompts) * blocks)
    for id, prompt in enumerate(prompts):
        table.admit(pb.NewSequence(id=id, token_ids=prompt.tolist(), num_prompt_tokens=len(prompt)))
        table.append_blocks(np.array([id]), np.array([blocks]), np.arange(blocks * id, blocks * (id + 1)))
    third = len(prompts[0]) // 3
    rows: list[list[torch.Tensor]] = [[] for _ in prompts]
    pieces = [third, third, len(prompts[0]) - 2 * third]
    for i, piece in enumerate(pieces):
        ids = np.arange(len(prompts)) if i == len(pieces) - 1 else np.array([0])
        counts = np.array([piece if id == 0 else len(prompts[id]) for id in ids])
        batch = table.batch(ids, counts)
        logits, kept = path.forward(batch, table, np.arange(len(batch.positions)))
        for row, token in zip(logits, kept.tolist(), strict=True):
            rows[int(batch.sequence_ids[batch.row[token]])].append(row.float())
        table.computed(batch)
    path.release(np.arange(len(prompts)))
    return [torch.stack(own) for own in rows]
