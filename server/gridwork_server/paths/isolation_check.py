"""Checks that a sequence's results depend only on its own tokens, even beyond the limits in the config.

Results must not depend on neighbours in the batch, nor on where a prompt is cut. The comparison with plain `forward()`
in `self_check` uses fewer tokens than the windows and contexts of real models have, so this module adds three checks:

- Modules whose results depend on the length of a call are found by calling them alone, at any length (`lengths.probe`).
- A neighbour's tokens get positions beyond every limit in the config, while its keys stay where they are. The logits of
  the sequence beside it must not change. That takes two steps of few tokens.
- If the model is small enough, a prompt longer than the limit is computed in chunks beside a short one. Both are
  compared with plain `forward()`.
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
"""Number of tokens of the sequence whose neighbours change."""

_NUM_NEIGHBOURS = 8

_MAX_WORK = 2 * 10**10
"""Maximum of parameters times tokens for crossing a limit: takes a fraction of a second."""

_LONGEST_LIMIT = 512
"""Maximum limit, in tokens, that is crossed with a prompt."""

_NEIGHBOUR_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Largest difference of a row's logits, as a share of their spread, when only a neighbour has changed. A neighbour may
change the rounding of a mixture of experts, but never in half of the rows."""

_PATH_TOLERANCE = {torch.float32: 0.02, torch.float16: 0.3, torch.bfloat16: 0.3}
"""Largest such difference between a path and plain `forward()`. Wrong results differ by about 1."""


def recompute_length(model: Any) -> int:
    """Length at which `generate()` drops a sequence's keys and recomputes it, as for models with two sets of rotary
    frequencies; 0: never. It is found by calling the model's own preparation of inputs."""
    from transformers import GenerationMixin

    prepare = getattr(model, "prepare_inputs_for_generation", None)
    if prepare is None or type(model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
        return 0
    if _drops_keys(model, prepare, 2):
        return 0  # the model never keeps keys, at any length
    return next((length for length in lengths_to_try(model.config) if _drops_keys(model, prepare, length)), 0)


def _drops_keys(model: Any, prepare: Any, length: int) -> bool:
    """Tells whether the keys of `length - 1` tokens are dropped for a sequence of this length."""
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
    """Finds the modules that depend on how many tokens are computed together, and makes them use each token's own
    length from now on. tokens: int32, a sequence that plain `forward()` computes meanwhile."""
    length = len(tokens)
    config: Any = caller.model.config
    if config.is_encoder_decoder:
        # The decoder, with its start token, must compute as many tokens as the encoder.
        length = (length + 1) // 2
        tokens = tokens[: 2 * length - 1]
    with watch(caller.model, length) as found:
        caller.plain(tokens, length)
    if not found:
        return None
    found[0].recompute_at = recompute_length(caller.model)
    return found[0]


class IsolationCheck:
    """Checks a path for dependence on neighbours, on cuts and on lengths, beyond `self_check`."""

    def __init__(
        self, caller: "Caller | Seq2SeqCaller", dtype: torch.dtype, tokens: np.ndarray, group: "RankGroup"
    ) -> None:
        """tokens: int32, a sequence to compare on."""
        self._caller, self._dtype, self._tokens, self._group = caller, dtype, tokens, group
        self._crossing: LimitCrossing | None = None

    def prepare(self) -> None:
        """Computes the results of plain `forward()`, with the model's own attention."""
        lengths = self._caller.lengths
        border = lengths.rule.border if lengths else 0
        parameters = sum(parameter.numel() for parameter in self._caller.model.parameters())
        # Ranks may hold different numbers of parameters, but must compute the same.
        most = self._group.minimum(_MAX_WORK // max(1, parameters))
        self._crossing = prepare_crossing(self._caller, border, self._tokens, self._dtype, most)

    def check(self, path: ModelPath) -> None:
        """Runs the checks. Only rank 0 has whole logits, so it decides for all. Raises PathError on all ranks."""
        found: PathError | None = None
        # Every rank runs all checks even after a failure, because the others wait for its part of the sums.
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
    """Raises PathError when a sequence's logits change with the positions of its neighbours' tokens. tokens: int32, a
    sample of ids. Does nothing when the model takes no positions, or computes one sequence at a time."""
    compute: Callable[[np.ndarray], torch.Tensor]
    if path.takes_positions:
        compute = functools.partial(_logits_beside_neighbours, path, np.resize(tokens, _NUM_TOKENS + _NUM_NEIGHBOURS))
    elif path.name == "batched" and isinstance(caller, Caller) and caller.takes("position_ids"):
        if caller.lengths is not None and caller.lengths.by_call:
            return  # sequences of such a model are never computed together
        compute = functools.partial(_logits_in_padded_batch, caller, np.resize(tokens, _NUM_TOKENS))
    else:
        return
    before = compute(np.arange(_NUM_NEIGHBOURS))
    for far in _far_positions(caller.model.config, caller.device):
        try:
            after = compute(far)
        except Exception as error:  # for example, a table of positions that ends
            logger.debug(f"positions up to {far.max()} cannot be computed: {error}")
            continue
        differing = _differences(after, before) > _NEIGHBOUR_TOLERANCE[dtype]
        # The first token attends only to itself, whatever its position.
        if int(differing.sum()) > _NUM_TOKENS // 2:
            raise PathError(f"logits of a sequence depend on how long others are (tried with {far.max() + 1} tokens)")
        return


def _far_positions(config: Any, device: torch.device) -> list[np.ndarray]:
    """Positions for the neighbours, int64, in descending order."""
    lengths = lengths_to_try(config)
    most = lengths[-1] if lengths else 0
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if device.type != "cpu":
        # A position beyond a table would crash a GPU's process.
        most = context if isinstance(context, int) else 0
    starts = [most, *([context] if isinstance(context, int) and context < most else []), most // 4, most // 64]
    return [start - _NUM_NEIGHBOURS + np.arange(_NUM_NEIGHBOURS) for start in starts if start > 2 * _NUM_NEIGHBOURS]


def _logits_beside_neighbours(path: ModelPath, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
    """Logits `[_NUM_TOKENS, vocab_size]` of a sequence beside neighbours of one token each, at these positions."""
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


def _logits_in_padded_batch(caller: Caller, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
    """Logits `[_NUM_TOKENS, vocab_size]` of a sequence in a batch with another one at these positions."""
    input_ids = torch.from_numpy(np.stack([tokens, tokens[::-1]]).astype(np.int64)).to(caller.device)
    at = np.stack([np.arange(_NUM_TOKENS), positions])
    mask = torch.ones_like(input_ids)
    with caller.lengths.of(at + 1) if caller.lengths is not None else nullcontext():
        logits, _ = caller.with_cache(input_ids, None, mask, torch.from_numpy(at).to(caller.device), True)
    return logits[0].float()


def _differences(given: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Root mean square of each row's differences, float `[rows]`, as a share of the logits' standard deviation."""
    known = torch.isfinite(expected)
    if not known.any():
        return torch.zeros(len(expected))
    difference = torch.where(known, given - expected, 0)
    return difference.square().mean(-1).sqrt() / expected[known].std().clamp_min(1e-6)


@dataclass(frozen=True)
class LimitCrossing:
    """Prompts for crossing a limit, one of them longer than it, with the results of plain `forward()`."""

    limit: int
    prompts: list[np.ndarray]
    """Token ids of each prompt, int32."""
    expected: list[torch.Tensor]
    """Logits of each prompt, float32 `[num_tokens, vocab_size]`; fewer rows, the last ones, from some models."""
    dtype: torch.dtype

    @torch.inference_mode()
    def check(self, path: ModelPath) -> None:
        """Raises PathError when a path's results differ. It computes the long prompt in chunks, beside the others."""
        for want, got in zip(self.expected, _logits_in_chunks(path, self.prompts), strict=True):
            count = min(len(want), len(got))
            differences = _differences(got[-count:], want[-count:])
            known = differences[torch.isfinite(differences)]
            logger.debug(f"rows differ by {[round(row, 5) for row in known.tolist()]} of the logits' spread")
            if len(known) and float(known.median()) > _PATH_TOLERANCE[self.dtype]:
                raise PathError(f"its logits are not those of plain forward() beside or beyond {self.limit} tokens")


@torch.inference_mode()
def prepare_crossing(
    caller: "Caller | Seq2SeqCaller", border: int, tokens: np.ndarray, dtype: torch.dtype, most: int = _LONGEST_LIMIT
) -> LimitCrossing | None:
    """Prepares prompts that cross a model's longest limit; None when no limit is small enough. border: length up to
    which nothing depends on the length, 0 for none; tokens: int32, a sample of ids; most: longest limit that may be
    crossed."""
    most = min(_LONGEST_LIMIT, most)
    limit = max((limit for limit in {border, *_windows(caller.model.config)} if 2 < limit <= most), default=0)
    if limit == 0:
        return None
    long, short = limit + 5, 5
    generator = np.random.default_rng(1)
    prompts = [generator.choice(tokens, length) for length in (long, short)]
    try:
        expected = [caller.plain(prompt, len(prompt)).float() for prompt in prompts]
    except Exception as error:  # for example, a table of positions that is shorter
        logger.debug(f"{long} tokens cannot be computed: {error}")
        return None
    return LimitCrossing(limit, prompts, expected, dtype)


def _windows(config: Any) -> set[int]:
    """Lengths of the windows and chunks of the layers' attention."""
    text = config.get_text_config(decoder=True)
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size", "local_attention")
    values = (getattr(text, name, None) for name in names)
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool)}


def _logits_in_chunks(path: ModelPath, prompts: list[np.ndarray]) -> list[torch.Tensor]:
    """Computes every token's logits with a path: the first prompt in three chunks, the others beside the last chunk."""
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
