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
from gridwork_server.sampling.truncation import draw_truncated

if TYPE_CHECKING:
    from gridwork_server._proto.shard_pb2 import SamplingParameters
    from gridwork_server.sampling.token_masks import TokenMasks

_OF_DRAWS = Stage.DRAW | Stage.TRUNCATION
_WITHOUT_END = np.uint8(255 ^ Stage.END)


class Sampler:
    """Samples one token for each row of a step's logits, without a loop over rows.

    A batch of greedy sequences costs one pass over the logits. Any other stage costs time and memory only for the
    sequences that need it. All work is done where the logits are, and the host never waits for it.
    """

    def __init__(self, max_sequences: int, vocab_size: int, device: torch.device | str) -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._stages = np.zeros(max_sequences, dtype=np.uint8)
        """Stages that each sequence needs, as bits of `Stage`."""
        self._columns = {each.field: np.full(max_sequences, each.neutral, each.dtype) for each in PARAMETERS}
        """Values of each parameter, by the contract's field."""
        self._top_n = np.zeros(max_sequences, dtype=np.int64)
        self._counts = SparseRows(max_sequences, vocab_size, torch.int32, self._device)
        """Distinct tokens of prompt and generation, with how often each was generated (0: in the prompt alone)."""
        self._biases = SparseRows(max_sequences, vocab_size, torch.float32, self._device)
        self._ends = SparseRows(max_sequences, vocab_size, torch.float32, self._device)
        """Tokens that end a sequence, with the bias of -inf that forbids them while it is too short."""
        self._tables = {Stage.PENALTY: self._counts, Stage.BIAS: self._biases, Stage.END: self._ends}
        self._changes_of_logits: dict[Stage, Callable[[torch.Tensor, np.ndarray, np.ndarray], None]] = {
            Stage.BIAS: partial(self._add_biases, self._biases),
            Stage.PENALTY: self._apply_penalties,
            Stage.END: partial(self._add_biases, self._ends),
        }
        """Stages that change logits, in order."""

    def admit(
        self,
        sequence_id: int,
        token_ids: np.ndarray,
        num_prompt_tokens: int,
        params: "SamplingParameters",
        logprobs: bool = False,
        top_n: int = 0,
    ) -> None:
        """Takes a sequence in, and forgets the sequence that had the id before.

        token_ids: int32, the prompt, then the tokens generated so far. Neutral values of the contract switch a
        parameter off; a temperature of 0 or less means greedy. Token ids outside the vocabulary do not count.
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
                self._stages[sequence_id] = 0

    def check_drafts(self, sequence_ids: np.ndarray) -> None:
        """Raises ValueError when one of these sequences cannot have drafts. sequence_ids: int64."""
        refused = sequence_ids[(self._stages[sequence_ids] & NO_DRAFTS) != 0]
        if len(refused):
            raise ValueError(
                f"sequence {refused[0]} has drafts and penalties, which depend on all earlier tokens; send it no drafts"
            )

    def sample(self, logits: torch.Tensor, sequence_ids: np.ndarray, positions: np.ndarray) -> SampleOutput:
        """Samples as `begin` does, and waits for the result."""
        return self.begin(logits, sequence_ids, positions).read()

    @torch.inference_mode()
    def begin(
        self,
        logits: torch.Tensor,
        sequence_ids: np.ndarray,
        positions: np.ndarray,
        masks: "TokenMasks | None" = None,
    ) -> Sampled:
        """Samples the next token of each row and counts it for the penalties of later steps.

        logits: float32 [B, vocab], may be changed in place. sequence_ids: int64 [B], those with penalties each once.
        positions: int64 [B], the position that each new token takes in its sequence: with the seed, it alone determines
        the random number, and it alone decides whether tokens that end the sequence are forbidden. masks: of the rows
        whose sequence has a grammar, which counts more than anything that forbids a token. Rows that fail get a token
        like the others, and disturb none of them.
        """
        logits = logits.contiguous()
        stages = self._stages[sequence_ids]
        stages[positions >= self._columns["first_end_position"][sequence_ids]] &= _WITHOUT_END
        if masks is None and not stages.any():
            return Sampled(*argmax(logits))
        needed = int(np.bitwise_or.reduce(stages, initial=0))
        observed = Observed.of(logits, np.nonzero(stages & Stage.LOGPROBS)[0]) if needed & Stage.LOGPROBS else None
        for stage, change in self._changes_of_logits.items():
            if needed & stage:
                change(logits, np.nonzero(stages & stage)[0], sequence_ids)
        if masks is not None:
            masks.apply(logits)

        tokens, maxima = argmax(logits)
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

    def _add_biases(self, table: SparseRows, logits: torch.Tensor, rows: np.ndarray, sequence_ids: np.ndarray) -> None:
        rows = rows[table.has_entries(sequence_ids[rows])]
        if len(rows):
            tokens, biases = table.gather(sequence_ids[rows])
            places = (self._to_device(rows)[:, None], tokens)
            logits[places] = logits[places] + biases

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
