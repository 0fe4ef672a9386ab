"""Rules on a token by the tokens before it: runs that are favoured or forbidden, repeated runs, and the watermark.

The host applies them, since it has the tokens before; steps with such rules wait for those of the step before. State is
kept nowhere: a sequence that is preempted or replayed, and each draft, get the rules from their own tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_kernels.device_copies import to_device
from gridwork_server.sampling.watermark import FavouredTokens

if TYPE_CHECKING:
    from gridwork_server._proto.shard_pb2 import SamplingParameters


@dataclass(frozen=True)
class _Rules:
    """Rules of one sequence."""

    first: int
    """Position of the text's first token; tokens before it do not count."""
    runs: dict[tuple[int, ...], dict[int, float]]
    """Biases of tokens, by the tokens before them."""
    run_lengths: list[int]
    """Numbers of tokens that the keys of `runs` have, each once."""
    ngram_size: int
    watermark: tuple[float, float, int] | None
    """Share of the vocabulary that is favoured, its bias, and the key."""


class TextRules:
    """Rules of the sequences that have any, by id."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._rules: dict[int, _Rules] = {}
        self._favoured = FavouredTokens(vocab_size, device)

    def set(self, sequence_id: int, params: "SamplingParameters", first: int) -> None:
        """Takes the rules of a sequence in. first: position of its text's first token."""
        runs: dict[tuple[int, ...], dict[int, float]] = {}
        tokens, end = list(params.run_tokens), 0
        for length, bias in zip(params.run_lengths, params.run_biases, strict=True):
            start, end = end, end + length
            *before, last = tokens[start:end]
            if last < self._vocab_size:
                biases = runs.setdefault(tuple(before), {})
                biases[last] = biases.get(last, 0.0) + bias
        has_watermark = params.watermark_share > 0 and params.watermark_bias != 0
        self._rules[sequence_id] = _Rules(
            first=first,
            runs=runs,
            run_lengths=sorted({len(before) for before in runs}),
            ngram_size=params.no_repeat_ngram_size,
            watermark=(params.watermark_share, params.watermark_bias, params.watermark_key) if has_watermark else None,
        )

    def clear(self, sequence_id: int) -> None:
        """Forgets the rules of a sequence."""
        self._rules.pop(sequence_id, None)

    def apply(
        self, logits: torch.Tensor, rows: np.ndarray, sequence_ids: np.ndarray, positions: np.ndarray, text: np.ndarray
    ) -> None:
        """Changes the logits of some rows in place.

        logits: float32 `[B, V]`; rows: int64 `[R]`; sequence_ids, positions: int64 `[B]`; text: int32
        `[max_sequences, n]`, the tokens of every sequence, by position. A row sees those before its position.
        """
        places: list[tuple[int, int]] = []
        values: list[float] = []
        for row in rows.tolist():
            id = int(sequence_ids[row])
            rules = self._rules[id]
            before = text[id, rules.first : positions[row]]
            biases = self._biases(rules, before)
            places += ((row, token) for token in biases)
            values += biases.values()
            if rules.watermark is not None and len(before):
                share, bias, key = rules.watermark
                favoured = self._favoured.after(int(before[-1]), share, key)
                logits[row].add_(favoured, alpha=bias)
        if places:
            at = to_device(np.array(places, dtype=np.int64).T.copy(), self._device)
            biased = to_device(np.array(values, dtype=np.float32), self._device)
            logits[at[0], at[1]] = logits[at[0], at[1]] + biased

    def _biases(self, rules: _Rules, before: np.ndarray) -> dict[int, float]:
        """Biases of the token that comes after these, int32 `[n]`."""
        biases: dict[int, float] = {}
        for length in rules.run_lengths:
            if length <= len(before):
                found = rules.runs.get(tuple(before[len(before) - length :].tolist()), {})
                for token, bias in found.items():
                    biases[token] = biases.get(token, 0.0) + bias
        if rules.ngram_size:
            biases.update((token, -np.inf) for token in self._repeating(before, rules.ngram_size))
        return biases

    def _repeating(self, before: np.ndarray, size: int) -> Iterable[int]:
        """Tokens that would repeat a run of `size` tokens."""
        if len(before) < size:
            return ()
        runs = np.lib.stride_tricks.sliding_window_view(before, size)
        start = before[len(before) - size + 1 :]
        again = np.unique(runs[(runs[:, :-1] == start).all(1), -1])
        return again[(again >= 0) & (again < self._vocab_size)].tolist()
