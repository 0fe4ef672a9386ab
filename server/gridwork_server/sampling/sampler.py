"""The sampler of one shard: per-sequence settings, and the order in which a step's logits are worked on."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_kernels.argmax import argmax
from gridwork_kernels.device_copies import to_device
from gridwork_server.sampling.draw import Cuts, DrawSettings, draw_untruncated
from gridwork_server.sampling.philox import uniforms
from gridwork_server.sampling.sampled import Observed, Sampled, SampleOutput
from gridwork_server.sampling.sparse_rows import SparseRows
from gridwork_server.sampling.truncation import draw_truncated

if TYPE_CHECKING:
    from gridwork_server._proto.shard_pb2 import SamplingParameters

# What a sequence needs beyond the most likely token.
_RANDOM, _TRUNCATED, _PENALIZED, _BIASED, _LOGPROBS = 1, 2, 4, 8, 16

# Below this, a temperature changes nothing but the risk of an overflow: the distribution is its maximum.
_MIN_TEMPERATURE = 1e-6


class Sampler:
    """Samples one token for each row of a step's logits, without a loop over rows.

    A batch of greedy sequences costs one pass over the logits. Any other feature costs time and memory only for the
    sequences that use it. All of it is computed where the logits are, without the host's waiting for any of it.
    """

    def __init__(self, max_sequences: int, vocab_size: int, device: torch.device | str) -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._features = np.zeros(max_sequences, dtype=np.uint8)
        self._inverse_temperature = np.ones(max_sequences, dtype=np.float32)
        self._top_k = np.zeros(max_sequences, dtype=np.int64)
        self._top_p = np.ones(max_sequences, dtype=np.float32)
        self._min_p = np.zeros(max_sequences, dtype=np.float32)
        self._typical_p = np.ones(max_sequences, dtype=np.float32)
        self._repetition = np.ones(max_sequences, dtype=np.float32)
        self._frequency = np.zeros(max_sequences, dtype=np.float32)
        self._presence = np.zeros(max_sequences, dtype=np.float32)
        self._seed = np.zeros(max_sequences, dtype=np.uint64)
        self._top_n = np.zeros(max_sequences, dtype=np.int64)
        # Distinct tokens of prompt and generation, each with how often it was generated (0: in the prompt alone).
        self._counts = SparseRows(max_sequences, vocab_size, torch.int32, self._device)
        self._biases = SparseRows(max_sequences, vocab_size, torch.float32, self._device)

    def admit(
        self,
        sequence_id: int,
        token_ids: np.ndarray,
        num_prompt_tokens: int,
        params: "SamplingParameters",
        logprobs: bool = False,
        top_n: int = 0,
    ) -> None:
        """Takes a sequence in; what the id meant before is forgotten.

        token_ids: int32, the prompt, then what was generated so far. Values that the contract calls neutral switch a
        feature off; a temperature of 0 or less means greedy. Token ids outside the vocabulary are left out of account.
        """
        self.release((sequence_id,))
        features = 0
        if not params.greedy and params.temperature > 0:
            features |= _RANDOM
            self._seed[sequence_id] = params.seed
            self._inverse_temperature[sequence_id] = 1 / max(params.temperature, _MIN_TEMPERATURE)
            top_k = params.top_k if params.top_k < self._vocab_size else 0
            self._top_k[sequence_id] = top_k
            self._top_p[sequence_id] = params.top_p
            self._min_p[sequence_id] = params.min_p
            self._typical_p[sequence_id] = params.typical_p
            if top_k > 0 or params.top_p < 1 or params.typical_p < 1:
                features |= _TRUNCATED
        if params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0:
            features |= _PENALIZED
            self._repetition[sequence_id] = params.repetition_penalty
            self._frequency[sequence_id] = params.frequency_penalty
            self._presence[sequence_id] = params.presence_penalty
            self._counts.set(sequence_id, *self._count(token_ids, num_prompt_tokens))
        bias_tokens = np.fromiter(params.logit_bias_tokens, dtype=np.int64)
        if len(bias_tokens):
            features |= _BIASED
            self._biases.set(sequence_id, *self._sum_biases(bias_tokens, params.logit_bias_values))
        if logprobs or top_n > 0:
            features |= _LOGPROBS
        self._top_n[sequence_id] = min(top_n, self._vocab_size)
        self._features[sequence_id] = features

    def release(self, ids: Iterable[int]) -> None:
        """Forgets sequences; ids that are not in use are fine."""
        for sequence_id in ids:
            features = self._features[sequence_id]
            if features & _PENALIZED:
                self._counts.clear(sequence_id)
            if features & _BIASED:
                self._biases.clear(sequence_id)
            self._features[sequence_id] = 0

    def sample(self, logits: torch.Tensor, sequence_ids: np.ndarray, positions: np.ndarray) -> SampleOutput:
        """What `begin` samples, read at once."""
        return self.begin(logits, sequence_ids, positions).read()

    @torch.inference_mode()
    def begin(self, logits: torch.Tensor, sequence_ids: np.ndarray, positions: np.ndarray) -> Sampled:
        """Samples the next token of each row and counts it for the penalties of later steps.

        logits: float32 [B, vocab], may be changed in place. sequence_ids: int64 [B], those with penalties each once.
        positions: int64 [B], the place in its sequence that each new token takes: with the seed, it alone determines
        the random number. Rows that fail get a token like the others, and disturb none of them.
        """
        logits = logits.contiguous()
        features = self._features[sequence_ids]
        if not features.any():
            return Sampled(*argmax(logits))
        wanted = int(np.bitwise_or.reduce(features, initial=0))
        observed = Observed.of(logits, np.nonzero(features & _LOGPROBS)[0]) if wanted & _LOGPROBS else None
        if wanted & _BIASED:
            self._apply_biases(logits, np.nonzero(features & _BIASED)[0], sequence_ids)
        if wanted & _PENALIZED:
            self._apply_penalties(logits, np.nonzero(features & _PENALIZED)[0], sequence_ids)

        tokens, maxima = argmax(logits)
        if wanted & _RANDOM:
            drawn = features & (_RANDOM | _TRUNCATED)
            for kind, draw in ((_RANDOM, draw_untruncated), (_RANDOM | _TRUNCATED, draw_truncated)):
                rows = np.nonzero(drawn == kind)[0]
                if len(rows):
                    index = self._to_device(rows)
                    settings = self._settings(sequence_ids[rows], positions[rows])
                    tokens[index] = draw(logits, index, maxima[index], settings)

        if wanted & _PENALIZED:
            rows = np.nonzero(features & _PENALIZED)[0]
            self._counts.increment(sequence_ids[rows], tokens[self._to_device(rows)])
        report = observed.report(tokens, self._top_n[sequence_ids]) if observed is not None else None
        return Sampled(tokens, maxima, report)

    def _count(self, token_ids: np.ndarray, num_prompt_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """The distinct tokens of a sequence, and how often each was generated."""
        token_ids = np.asarray(token_ids, dtype=np.int64)
        inside = (token_ids >= 0) & (token_ids < self._vocab_size)
        generated = np.arange(len(token_ids)) >= num_prompt_tokens
        distinct, index = np.unique(token_ids[inside], return_inverse=True)
        return distinct, np.bincount(index, weights=generated[inside], minlength=len(distinct)).astype(np.int32)

    def _sum_biases(self, tokens: np.ndarray, values: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
        """The distinct tokens of a bias, those named twice with the sum of their values."""
        inside = (tokens >= 0) & (tokens < self._vocab_size)
        distinct, index = np.unique(tokens[inside], return_inverse=True)
        summed = np.zeros(len(distinct), dtype=np.float32)
        np.add.at(summed, index, np.fromiter(values, dtype=np.float32)[inside])
        return distinct, summed

    def _apply_biases(self, logits: torch.Tensor, rows: np.ndarray, sequence_ids: np.ndarray) -> None:
        rows = rows[self._biases.has_entries(sequence_ids[rows])]
        if len(rows):
            tokens, biases = self._biases.gather(sequence_ids[rows])
            places = (self._to_device(rows)[:, None], tokens)
            logits[places] = logits[places] + biases

    def _apply_penalties(self, logits: torch.Tensor, rows: np.ndarray, sequence_ids: np.ndarray) -> None:
        """Repetition: N. S. Keskar et al., "CTRL", 2019, section 4.1; frequency, presence: OpenAI's API reference."""
        rows = rows[self._counts.has_entries(sequence_ids[rows])]
        if len(rows):
            ids = sequence_ids[rows]
            tokens, counts = self._counts.gather(ids)
            places = (self._to_device(rows)[:, None], tokens)
            repetition = self._to_device(self._repetition[ids])[:, None]
            values = logits[places]
            values = torch.where(values < 0, values * repetition, values / repetition)
            values -= self._to_device(self._frequency[ids])[:, None] * counts
            values -= self._to_device(self._presence[ids])[:, None] * (counts > 0)
            logits[places] = values

    def _settings(self, ids: np.ndarray, positions: np.ndarray) -> DrawSettings:
        cuts = self._top_k[ids], self._typical_p[ids], self._top_p[ids], self._min_p[ids]
        top_k, typical_p, top_p, min_p = (self._to_device(values) for values in cuts)
        return DrawSettings(
            inverse_temperature=self._to_device(self._inverse_temperature[ids]),
            top_k=top_k,
            typical_p=typical_p,
            top_p=top_p,
            min_p=min_p,
            uniform=self._to_device(uniforms(self._seed[ids], positions)),
            cuts=Cuts.of(*cuts),
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._device)
