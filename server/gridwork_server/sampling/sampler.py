"""The sampler of one shard: settings of each sequence, and the order in which a step's logits are worked on."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_kernels.argmax import argmax
from gridwork_kernels.device_copies import to_device
from gridwork_server.sampling.draw import Cuts, DrawSettings, draw_untruncated
from gridwork_server.sampling.parameters import CUTS, NO_DRAFTS, PARAMETERS, Stage
from gridwork_server.sampling.philox import uniforms
from gridwork_server.sampling.sampled import Observed, Sampled, SampleOutput
from gridwork_server.sampling.sparse_rows import SparseRows
from gridwork_server.sampling.text_rules import TextRules
from gridwork_server.sampling.truncation import draw_truncated

if TYPE_CHECKING:
    from gridwork_server._proto.shard_pb2 import SamplingParameters
    from gridwork_server.sampling.token_checks import TokenChecks
    from gridwork_server.sampling.token_masks import TokenMasks

_OF_DRAWS = Stage.DRAW | Stage.TRUNCATION
_AT_POSITIONS = Stage.END | Stage.BEGIN | Stage.FORCED
"""Stages that apply at some positions of a sequence alone."""


class Sampler:
    """Samples one token for each row of a step's logits, without a loop over rows.

    A batch of greedy sequences costs one pass over the logits. Any other stage costs time and memory only for the
    sequences that need it. All work is done where the logits are, and the host never waits for it.
    """

    def __init__(self, max_sequences: int, vocab_size: int, device: torch.device | str) -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._stages = np.zeros(max_sequences, dtype=np.uint16)
        """Stages that each sequence needs, as bits of `Stage`."""
        self._columns = {each.field: np.full(max_sequences, each.neutral, each.dtype) for each in PARAMETERS}
        """Values of each parameter, by the contract's field."""
        self._top_n = np.zeros(max_sequences, dtype=np.int64)
        self._counts = SparseRows(max_sequences, vocab_size, torch.int32, self._device)
        """Distinct tokens of prompt and generation, with how often each was generated (0: in the prompt alone)."""
        self._biases = SparseRows(max_sequences, vocab_size, torch.float32, self._device)
        self._ends = SparseRows(max_sequences, vocab_size, torch.float32, self._device)
        """Tokens that end a sequence, with the bias of -inf that forbids them while it is too short."""
        self._allowed = SparseRows(max_sequences, vocab_size, torch.float32, self._device)
        """Tokens that a sequence may have, each with 0, where it may not have all."""
        self._begins = SparseRows(max_sequences, vocab_size, torch.float32, self._device)
        """Tokens that may not begin the generated text, with a bias of -inf."""
        self._begin_positions = np.zeros(max_sequences, dtype=np.int64)
        """Position of the first generated token, of sequences with `BEGIN`."""
        self._forced: dict[int, dict[int, list[int]]] = {}
        """Tokens of which one comes at a position, by sequence and position."""
        self._rules = TextRules(vocab_size, self._device)
        self._tables: dict[Stage, SparseRows | TextRules] = {
            Stage.PENALTY: self._counts,
            Stage.BIAS: self._biases,
            Stage.END: self._ends,
            Stage.ALLOWED: self._allowed,
            Stage.BEGIN: self._begins,
            Stage.TEXT: self._rules,
        }
        self._changes_of_logits: dict[Stage, Callable[[torch.Tensor, np.ndarray, np.ndarray], None]] = {
            Stage.BIAS: partial(self._add_biases, self._biases),
            Stage.PENALTY: self._apply_penalties,
            Stage.END: partial(self._add_biases, self._ends),
            Stage.BEGIN: partial(self._add_biases, self._begins),
        }
        """Stages that change logits by the sequence alone, in order."""

    def admit(
        self,
        sequence_id: int,
        token_ids: np.ndarray,
        num_prompt_tokens: int,
        params: "SamplingParameters",
        logprobs: bool = False,
        top_n: int = 0,
        first_position: int = 0,
    ) -> None:
        """Takes a sequence in, and forgets the sequence that had the id before.

        token_ids: int32, the prompt, then the tokens generated so far. Neutral values of the contract switch a
        parameter off; a temperature of 0 or less means greedy. Token ids outside the vocabulary do not count.
        first_position: position of the first of `token_ids`.
        """
        self.release((sequence_id,))
        is_drawn = not params.greedy and params.temperature > 0
        stages = Stage.DRAW if is_drawn else Stage(0)
        for each in PARAMETERS:
            if is_drawn or each.stage not in _OF_DRAWS:
                value = each.column(getattr(params, each.field), self._vocab_size)
                self._columns[each.field][sequence_id] = value
                if value != each.neutral:
                    stages |= each.stage
        if stages & Stage.PENALTY:
            self._counts.set(sequence_id, *self._count(token_ids, num_prompt_tokens))
        bias_tokens = np.fromiter(params.logit_bias_tokens, dtype=np.int64)
        if len(bias_tokens):
            stages |= Stage.BIAS
            self._biases.set(sequence_id, *self._sum_biases(bias_tokens, params.logit_bias_values))
        if stages & Stage.END:
            end_tokens = np.fromiter(params.end_token_ids, dtype=np.int64)
            self._ends.set(sequence_id, *self._sum_biases(end_tokens, np.full(len(end_tokens), -np.inf)))
        allowed = np.fromiter(params.allowed_token_ids, dtype=np.int64)
        if len(allowed):
            stages |= Stage.ALLOWED
            self._allowed.set(sequence_id, *self._sum_biases(allowed, np.zeros(len(allowed))))
        begin_tokens = np.fromiter(params.begin_forbidden_token_ids, dtype=np.int64)
        if len(begin_tokens):
            stages |= Stage.BEGIN
            self._begins.set(sequence_id, *self._sum_biases(begin_tokens, np.full(len(begin_tokens), -np.inf)))
            self._begin_positions[sequence_id] = first_position + num_prompt_tokens
        if params.forced_positions:
            stages |= Stage.FORCED
            forced: dict[int, list[int]] = {}
            for position, token in zip(params.forced_positions, params.forced_token_ids, strict=True):
                if token < self._vocab_size:
                    forced.setdefault(position, []).append(token)
            self._forced[sequence_id] = forced
        if params.run_lengths:
            stages |= Stage.TEXT
        if stages & Stage.TEXT:
            self._rules.set(sequence_id, params, first_position)
        if logprobs or top_n > 0:
            stages |= Stage.LOGPROBS
        self._top_n[sequence_id] = min(top_n, self._vocab_size)
        self._stages[sequence_id] = stages

    def release(self, ids: Iterable[int]) -> None:
        """Forgets sequences; ids that are not in use are allowed."""
        for sequence_id in ids:
            stages = self._stages[sequence_id]
            if stages:
                for stage, table in self._tables.items():
                    if stages & stage:
                        table.clear(sequence_id)
                self._forced.pop(sequence_id, None)
                self._stages[sequence_id] = 0

    def reads_text(self, sequence_ids: np.ndarray) -> bool:
        """True if the next token of any of these sequences depends on the tokens before by a rule of the host, which
        must then know them. sequence_ids: int64."""
        return bool((self._stages[sequence_ids] & Stage.TEXT).any())

    def is_greedy(self, sequence_ids: np.ndarray) -> np.ndarray:
        """bool `[n]`: whether each of these sequences gets the token with the largest logit. sequence_ids: int64."""
        greedy: np.ndarray = (self._stages[sequence_ids] & Stage.DRAW) == 0
        return greedy

    def check_drafts(self, sequence_ids: np.ndarray) -> None:
        """Raises ValueError when one of these sequences cannot have drafts. sequence_ids: int64."""
        refused = sequence_ids[(self._stages[sequence_ids] & NO_DRAFTS) != 0]
        if len(refused):
            raise ValueError(
                f"sequence {refused[0]} has drafts and penalties, which depend on all earlier tokens; send it no drafts"
            )

    def sample(
        self, logits: torch.Tensor, sequence_ids: np.ndarray, positions: np.ndarray, text: np.ndarray | None = None
    ) -> SampleOutput:
        """Samples as `begin` does, and waits for the result."""
        return self.begin(logits, sequence_ids, positions, text=text).read()

    @torch.inference_mode()
    def begin(
        self,
        logits: torch.Tensor,
        sequence_ids: np.ndarray,
        positions: np.ndarray,
        masks: "TokenMasks | None" = None,
        text: np.ndarray | None = None,
        checks: "TokenChecks | None" = None,
    ) -> Sampled:
        """Samples the next token of each row and counts it for the penalties of later steps.

        logits: float32 [B, vocab], may be changed in place. sequence_ids: int64 [B], those with penalties each once.
        positions: int64 [B], the position that each new token takes in its sequence: with the seed, it alone determines
        the random number, and it alone decides whether tokens that end the sequence are forbidden. masks: of the rows
        whose sequence has a grammar, which counts more than anything that forbids a token. checks: of the rows whose
        sequence has a grammar and no mask yet; their sequences are greedy. text: int32
        `[max_sequences, n]`, the tokens of every sequence by position, drafts included; needed for sequences for which
        `reads_text` is true. Rows that fail get a token like the others, and disturb none of them.
        """
        logits = logits.contiguous()
        stages = self._stages[sequence_ids]
        needed = int(np.bitwise_or.reduce(stages, initial=0))
        if needed & _AT_POSITIONS:
            self._leave_out_others(stages, sequence_ids, positions)
            needed = int(np.bitwise_or.reduce(stages, initial=0))
        if masks is None and not needed:
            return Sampled(*self._largest(logits, checks))
        observed = Observed.of(logits, np.nonzero(stages & Stage.LOGPROBS)[0]) if needed & Stage.LOGPROBS else None
        for stage, change in self._changes_of_logits.items():
            if needed & stage:
                change(logits, np.nonzero(stages & stage)[0], sequence_ids)
        if needed & Stage.TEXT:
            if text is None:
                raise ValueError("a sequence has rules on the tokens before, and no tokens were given")
            self._rules.apply(logits, np.nonzero(stages & Stage.TEXT)[0], sequence_ids, positions, text)
        if needed & Stage.ALLOWED:
            self._forbid_others(logits, np.nonzero(stages & Stage.ALLOWED)[0], sequence_ids)
        if needed & Stage.FORCED:
            self._force(logits, np.nonzero(stages & Stage.FORCED)[0], sequence_ids, positions)
        if masks is not None:
            masks.apply(logits)

        tokens, maxima = self._largest(logits, checks)
        if needed & Stage.DRAW:
            for of_row, draw in ((Stage.DRAW, draw_untruncated), (_OF_DRAWS, draw_truncated)):
                rows = np.nonzero((stages & _OF_DRAWS) == of_row)[0]
                if len(rows):
                    index = self._to_device(rows)
                    settings = self._settings(sequence_ids[rows], positions[rows])
                    tokens[index] = draw(logits, index, maxima[index], settings)

        if needed & Stage.PENALTY:
            rows = np.nonzero(stages & Stage.PENALTY)[0]
            self._counts.increment(sequence_ids[rows], tokens[self._to_device(rows)])
        report = observed.report(tokens, self._top_n[sequence_ids]) if observed is not None else None
        return Sampled(tokens, maxima, report)

    def _largest(self, logits: torch.Tensor, checks: "TokenChecks | None") -> tuple[torch.Tensor, torch.Tensor]:
        """Token with the largest logit of each row, int64 `[B]`, and the logit, float32 `[B]`, as grammars allow it."""
        tokens, maxima = argmax(logits)
        masks = checks.refused(tokens, maxima) if checks is not None else None
        if masks is not None:
            masks.apply(logits)
            index = self._to_device(masks.rows)
            tokens[index], maxima[index] = argmax(logits[index])
        return tokens, maxima

    def _count(self, token_ids: np.ndarray, num_prompt_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Distinct tokens of a sequence, with the number of times each was generated."""
        token_ids = np.asarray(token_ids, dtype=np.int64)
        inside = (token_ids >= 0) & (token_ids < self._vocab_size)
        generated = np.arange(len(token_ids)) >= num_prompt_tokens
        distinct, index = np.unique(token_ids[inside], return_inverse=True)
        return distinct, np.bincount(index, weights=generated[inside], minlength=len(distinct)).astype(np.int32)

    def _sum_biases(self, tokens: np.ndarray, values: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
        """Distinct tokens of a bias. Values of a token that is named twice are added."""
        inside = (tokens >= 0) & (tokens < self._vocab_size)
        distinct, index = np.unique(tokens[inside], return_inverse=True)
        summed = np.zeros(len(distinct), dtype=np.float32)
        np.add.at(summed, index, np.fromiter(values, dtype=np.float32)[inside])
        return distinct, summed

    def _leave_out_others(self, stages: np.ndarray, sequence_ids: np.ndarray, positions: np.ndarray) -> None:
        """Takes the stages out of rows for whose positions they are not. stages: uint16 [B], changed in place."""
        keeps = (
            (Stage.END, positions < self._columns["first_end_position"][sequence_ids]),
            (Stage.BEGIN, positions == self._begin_positions[sequence_ids]),
        )
        for stage, kept in keeps:
            stages[~kept] &= np.uint16(0xFFFF ^ stage)
        for row in np.nonzero(stages & Stage.FORCED)[0].tolist():
            if int(positions[row]) not in self._forced[int(sequence_ids[row])]:
                stages[row] &= np.uint16(0xFFFF ^ Stage.FORCED)

    def _add_biases(self, table: SparseRows, logits: torch.Tensor, rows: np.ndarray, sequence_ids: np.ndarray) -> None:
        rows = rows[table.has_entries(sequence_ids[rows])]
        if len(rows):
            tokens, biases = table.gather(sequence_ids[rows])
            places = (self._to_device(rows)[:, None], tokens)
            logits[places] = logits[places] + biases

    def _forbid_others(self, logits: torch.Tensor, rows: np.ndarray, sequence_ids: np.ndarray) -> None:
        rows = rows[self._allowed.has_entries(sequence_ids[rows])]
        if len(rows):
            tokens, _ = self._allowed.gather(sequence_ids[rows])
            index = self._to_device(rows)
            allowed = logits[index[:, None], tokens]
            logits[index] = -torch.inf
            logits[index[:, None], tokens] = allowed

    def _force(self, logits: torch.Tensor, rows: np.ndarray, sequence_ids: np.ndarray, positions: np.ndarray) -> None:
        for row in rows.tolist():
            tokens = np.array(self._forced[int(sequence_ids[row])][int(positions[row])], dtype=np.int64)
            index = self._to_device(tokens)
            # The same logit for each of them, as in generate(). NaN must still show.
            forced = torch.where(logits[row, index].isnan(), torch.nan, 0.0)
            logits[row] = -torch.inf
            logits[row, index] = forced

    def _apply_penalties(self, logits: torch.Tensor, rows: np.ndarray, sequence_ids: np.ndarray) -> None:
        """Formulas: repetition, N. S. Keskar et al., "CTRL", 2019, section 4.1; frequency and presence, OpenAI's API
        reference."""
        rows = rows[self._counts.has_entries(sequence_ids[rows])]
        if len(rows):
            ids = sequence_ids[rows]
            tokens, counts = self._counts.gather(ids)
            places = (self._to_device(rows)[:, None], tokens)
            repetition = self._to_device(self._columns["repetition_penalty"][ids])[:, None]
            values = logits[places]
            values = torch.where(values < 0, values * repetition, values / repetition)
            values -= self._to_device(self._columns["frequency_penalty"][ids])[:, None] * counts
            values -= self._to_device(self._columns["presence_penalty"][ids])[:, None] * (counts > 0)
            logits[places] = values

    def _settings(self, ids: np.ndarray, positions: np.ndarray) -> DrawSettings:
        limits = {field: self._columns[field][ids] for field in CUTS}
        return DrawSettings(
            inverse_temperature=self._to_device(self._columns["temperature"][ids])[:, None],
            uniform=self._to_device(uniforms(self._columns["seed"][ids], positions))[:, None],
            limits={field: self._to_device(values)[:, None] for field, values in limits.items()},
            cuts=Cuts.of(limits),
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._device)
