"""Grammars of running sequences: where each one's text stands, and the tokens that may come next.

A thread computes the masks of a step beside its forward pass, without Python's lock. Where the step before is still
being computed, that thread waits for its tokens.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_kernels.token_masks import num_words
from gridwork_server.sampling.grammar_library import GrammarLibrary
from gridwork_server.sampling.matching import Matching
from gridwork_server.sampling.token_checks import TokenChecks
from gridwork_server.sampling.token_masks import TokenMasks

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

    from gridwork_server._proto import shard_pb2 as pb

_MAX_THREADS = 8
"""Maximum number of threads that compute masks of several sequences."""

_MAX_FORCED = 16
"""Maximum number of forced tokens that are reported; the engine drafts up to as many in one step."""


class Grammars:
    """Matchings of the sequences that have a grammar, by id."""

    def __init__(self, tokens: "pb.TokenTable", vocab_size: int, device: torch.device, forced_up_to: int) -> None:
        """vocab_size: number of logits. forced_up_to: number of sequences in a step up to which forced tokens are
        reported, since the engine drafts them."""
        self._library = GrammarLibrary(tokens, vocab_size)
        # The library has a token for the end, also where the model has none.
        end_ids = list(tokens.end_ids) or [vocab_size]
        self._num_words = num_words(max(vocab_size, end_ids[0] + 1))
        self._vocab_size = vocab_size
        self._end_words = _mask_of(end_ids, self._num_words)
        self._is_pinned = device.type == "cuda"
        self._checks_tokens = device.type == "cpu"
        self._forced_up_to = forced_up_to
        self._matchings: dict[int, Matching] = {}
        self._thread = ThreadPoolExecutor(1, "grammar-masks")
        self._executor: LLExecutor | None = None

    @property
    def has_any(self) -> bool:
        """True if any sequence has a grammar."""
        return bool(self._matchings)

    def admit(self, id: int, grammar: str, tokens: list[int], position: int) -> None:
        """Takes a sequence in. tokens: generated so far; position: of the next one."""
        self._matchings[id] = Matching(self._library.compiled(grammar), tokens, position)

    def release(self, ids: Iterable[int]) -> None:
        """Forgets sequences; those without a grammar are allowed."""
        if self._matchings:
            for id in ids:
                self._matchings.pop(id, None)

    def reset(self) -> None:
        """Forgets every sequence."""
        self._matchings.clear()

    def close(self) -> None:
        """Ends the threads."""
        self._thread.shutdown(wait=True)
        self._library.close()

    def start(
        self,
        ids: np.ndarray,
        counts: np.ndarray | None,
        inputs: np.ndarray,
        greedy: np.ndarray,
        before: Callable[[], None] | None,
    ) -> "tuple[Future[TokenMasks] | None, TokenChecks | None]":
        """Starts to compute the masks of a step. Returns them, and the checks of the rows that have none yet; None when
        there are no such rows.

        ids: int64 `[n]`, sequences that the step samples for. counts: int64 `[n]`, number of positions of each, one
        more than its drafts; None: one each. inputs: int64 `[k]`, the input token at each position. greedy: bool `[n]`,
        sequences that get the token with the largest logit. before: feeds the tokens of the step before; called first.
        """
        found = [index for index, id in enumerate(ids.tolist()) if id in self._matchings] if self._matchings else []
        if not found:
            return None, None
        widths = np.ones(len(ids), dtype=np.int64) if counts is None else counts
        first = np.cumsum(widths) - widths
        checked: list[int] = []
        masked: list[int] = []
        for index in found:
            is_checked = self._checks_tokens and greedy[index] and widths[index] == 1
            (checked if is_checked else masked).append(index)
        masks = checks = None
        if masked:
            spans = [slice(int(first[index]), int(first[index] + widths[index])) for index in masked]
            rows = np.concatenate([np.arange(span.start, span.stop) for span in spans])
            drafts = [self._usable(inputs[span][1:].tolist()) for span in spans]
            masks = self._thread.submit(
                self._compute, ids[masked].tolist(), rows, widths[masked].tolist(), drafts, before
            )
        if checked:
            masks_of = partial(self._masks_of_rows, ids[checked], first[checked])
            matchings = [self._matchings[id] for id in ids[checked].tolist()]
            checks = TokenChecks(first[checked], matchings, before, masks_of)
        return masks, checks

    def _masks_of_rows(self, ids: np.ndarray, rows: np.ndarray, which: list[int]) -> TokenMasks:
        """Masks of some of these sequences, one row each. which: their indices."""
        return self._compute(ids[which].tolist(), rows[which], [1] * len(which), [[] for _ in which], None)

    def feed(self, ids: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> None:
        """Adds sampled tokens to the texts of their sequences, unless they were added before. int64 `[k]` each, those
        of a sequence in order."""
        if not self._matchings:
            return
        for id, position, token in zip(ids.tolist(), positions.tolist(), tokens.tolist(), strict=True):
            matching = self._matchings.get(id)
            if matching is not None and position == matching.next_position:
                matching.next_position += 1
                matching.matcher.consume_token(token)

    def report(self, result: "pb.StepResult", ids: np.ndarray) -> None:
        """Adds the sequences whose grammar has ended, and the tokens that grammars force. ids: int64, sequences that
        have new tokens."""
        if not self._matchings:
            return
        reports_forced = len(ids) <= self._forced_up_to
        for id in ids.tolist():
            matching = self._matchings.get(id)
            if matching is None:
                continue
            if matching.has_ended:
                result.ended.append(id)
            elif reports_forced and (forced := self._forced(matching.matcher)):
                result.forced_sequence_ids.append(id)
                result.num_forced.append(len(forced))
                result.forced.extend(forced)

    def _usable(self, drafts: list[int]) -> list[int]:
        """The drafts before one that the model cannot sample."""
        wrong = next((at for at, token in enumerate(drafts) if token >= self._vocab_size), len(drafts))
        return drafts[:wrong]

    def _forced(self, matcher: "LLMatcher") -> list[int]:
        """Tokens of the text that the grammar forces. The model may write that text with other tokens."""
        # A copy, since the library then takes the text for written.
        text = matcher.deep_copy().compute_ff_bytes().decode(errors="ignore")
        return self._library.tokenizer.greedy_tokenize(text)[:_MAX_FORCED] if text else []

    def _compute(
        self,
        ids: list[int],
        rows: np.ndarray,
        widths: list[int],
        drafts: list[list[int]],
        before: Callable[[], None] | None,
    ) -> TokenMasks:
        """Masks of the rows of these sequences. widths: number of rows of each; drafts: tokens behind its first row."""
        if before is not None:
            before()
        matchings = [self._matchings[id] for id in ids]
        # Rows behind a draft that the grammar forbids keep all bits: their tokens are never taken.
        allowed = torch.full((len(rows), self._num_words), -1, dtype=torch.int32, pin_memory=self._is_pinned)
        first, plain, drafted = 0, [], []
        behind_drafts: list[int] = []
        for matching, width, guessed in zip(matchings, widths, drafts, strict=True):
            if guessed:
                drafted.append((matching.matcher, first, guessed))
            else:
                plain.append((matching.matcher, first))
            behind_drafts += range(first + 1, first + width)
            first += width
        size = (allowed.data_ptr(), self._num_words * 4, len(rows))
        if plain:
            self._masks().unsafe_compute_mask_ptr(plain, *size)
        if drafted:
            self._masks().unsafe_compute_mask_ptr_with_draft_token(drafted, *size)
        failures = {
            id: f"its grammar cannot be followed any further: {_reason(matching.matcher)}"
            for id, matching in zip(ids, matchings, strict=True)
            if matching.matcher.is_error()
        }
        behind = np.array(behind_drafts, dtype=np.int64)
        at_end = ~(allowed.numpy()[behind] & ~self._end_words).any(1)
        return TokenMasks(rows, allowed, failures, rows[behind[at_end]])

    def _masks(self) -> "LLExecutor":
        if self._executor is None:
            from llguidance import LLExecutor

            cores = len(os.sched_getaffinity(0))
            self._executor = LLExecutor(max(1, min(_MAX_THREADS, cores)))
        return self._executor


def _mask_of(ids: Iterable[int], num_words: int) -> np.ndarray:
    """int32 `[num_words]`: a mask that allows these tokens."""
    bits = np.zeros(32 * num_words, dtype=np.uint8)
    bits[[id for id in ids if id < len(bits)]] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _reason(matcher: "LLMatcher") -> str:
    lines = matcher.get_error().strip().splitlines()
    return lines[0] if lines else "no reason is known"
