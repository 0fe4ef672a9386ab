"""A step that has begun: its tokens are being computed, and the host has not read them."""

from dataclasses import dataclass, field

import numpy as np

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.paths.sequence_table import DeviceTokens, StepBatch
from gridwork_server.sampling.sampled import Sampled
from gridwork_server.sampling.token_masks import TokenMasks


@dataclass
class InFlightStep:
    """A step between its beginning and its end. n sequences are sampled for, with k positions in all."""

    result: "pb.StepResult"
    """The result, which has failures and log-probabilities of prompts so far."""
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64 `[n]`: sequences that the step samples for."""
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64 `[k]`: position of each new token in its sequence."""
    inputs: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64 `[k]`: the input token at each position that is sampled for."""
    counts: np.ndarray | None = None
    """int64 `[n]`: positions of each sequence, one more than its drafts; None: one each, since the step has no
    drafts."""
    sampled: Sampled | None = None
    """Sampled tokens; None on other ranks than 0, and when nothing is sampled."""
    masks: TokenMasks | None = None
    """Masks that were computed beside the forward pass; None when there are none."""
    grammar_failures: dict[int, str] = field(default_factory=dict)
    """Reasons why grammars of sequences cannot be followed any further, by id."""
    started: float = 0.0
    computed: float = 0.0
    """When the forward pass was called and when it returned, in seconds of the performance counter."""
    released: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """bool `[n]`: the sequence was released after the step had begun; its id may mean another one by now."""
    had_failed: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """bool `[n]`: the sequence was released and had failed before."""

    @property
    def rows(self) -> np.ndarray:
        """int64 `[k]`: the sequence of each position that is sampled for."""
        return self.ids if self.counts is None else np.repeat(self.ids, self.counts)

    @property
    def can_be_read(self) -> bool:
        """True if the step can be finished without waiting."""
        return self.sampled is None or self.sampled.can_be_read

    def forget(self, ids: np.ndarray, failed: np.ndarray) -> None:
        """Notes that the next step gives these ids away. ids: int64; failed: bool, by sequence id."""
        self.released = np.isin(self.ids, ids)
        self.had_failed = self.released & failed[self.ids]

    def tokens_for(self, batch: StepBatch) -> DeviceTokens | None:
        """Input tokens of the next step that this one samples; None when there are none."""
        expected = np.flatnonzero(~self.released)
        source = expected[np.argsort(self.ids[expected])]
        if len(source) == 0 or self.sampled is None:
            return None
        at = np.minimum(np.searchsorted(self.ids[source], batch.sequence_ids), len(source) - 1)
        rows = np.flatnonzero(self.ids[source[at]] == batch.sequence_ids)
        if len(rows) == 0:
            return None
        return DeviceTokens(batch.last[rows], self.sampled.token_ids, source[at[rows]])
