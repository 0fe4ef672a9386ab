"""Steps whose tokens stay on the device: each begins before the tokens of the one before it have been read.

Decodes take their input from what the last step sampled, without a way over the host. While a step is computed, the
host reads the last one's tokens and tells the router, which sends steps ahead. Steps with drafts, which depend on how
many of the last ones were taken, and those that report log-probabilities of prompts wait for what has begun.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.paths.decode_graphs import LateTokens
from gridwork_server.paths.paged import PagedPath
from gridwork_server.paths.sequence_table import StepBatch
from gridwork_server.sampling.sampled import Sampled
from gridwork_server.step.result import add_tokens

if TYPE_CHECKING:
    from gridwork_server.step.runner import Runner

Done = Callable[["pb.StepResult"], Any]


@dataclass
class _Begun:
    """A step whose tokens have not been read. n sequences, those that it samples for."""

    step_id: int
    ids: np.ndarray
    """int64 `[n]`"""
    positions: np.ndarray
    """int64 `[n]`: where in its sequence each new token stands."""
    sampled: Sampled
    began: float
    launched: float
    done: Done
    gone: np.ndarray
    """bool `[n]`: the id has been released since, and may mean another sequence."""
    had_failed: np.ndarray
    """bool `[n]`: of those that are gone, which had failed before that."""

    def forget(self, ids: np.ndarray, failed: np.ndarray) -> None:
        """Sequences that the next step releases. failed: bool, by sequence id."""
        self.gone = np.isin(self.ids, ids)
        self.had_failed = self.gone & failed[self.ids]


class OverlappedSteps:
    """Runs steps in order; a result may come only with the next step, or `flush`."""

    def __init__(self, runner: "Runner") -> None:
        self._runner = runner
        self._begun: _Begun | None = None

    @torch.inference_mode()
    def submit(self, step: "pb.Step", done: Done) -> None:
        """Computes a step, after those before it. done: is given the result, now or later, in order."""
        if self._may_overlap(step):
            last, self._begun = self._begun, self._begin(step, done)
            if last is not None:
                self._finish(last)
        else:
            self.flush()
            done(self._runner.run(step))

    @property
    def has_begun(self) -> bool:
        """Whether there is a step whose result has not been given."""
        return self._begun is not None

    @property
    def is_computed(self) -> bool:
        """Whether its result can be given without waiting."""
        return self._begun is None or self._begun.sampled.can_be_read

    def flush(self) -> None:
        """Waits for the step that has begun, and gives its result."""
        last, self._begun = self._begun, None
        if last is not None:
            self._finish(last)

    def _may_overlap(self, step: "pb.Step") -> bool:
        runner = self._runner
        if not isinstance(runner.path, PagedPath) or step.drafts or any(new.prompt_logprobs for new in step.admitted):
            return False
        bounds = runner.bounds
        if bounds.may_sample_unusable or any(bounds.refusal(new) is not None for new in step.admitted):
            return False
        table, ids = runner.table, np.array(step.sequence_ids, dtype=np.int64)
        # What is said of an id that this step gives to another sequence may make it wait in vain, once.
        asks_for_prompt = table.wants_prompt_logprobs[ids] & (table.num_computed[ids] + 1 < table.num_prompt[ids])
        return len(ids) > 0 and not asks_for_prompt.any() and not table.failed[ids].any()

    def _begin(self, step: "pb.Step", done: Done) -> _Begun:
        began = time.perf_counter()
        runner, path = self._runner, self._runner.path
        assert isinstance(path, PagedPath)
        table = runner.table
        if self._begun is not None and (step.released or step.admitted):
            self._begun.forget(np.array([*step.released, *(new.id for new in step.admitted)]), table.failed)
        runner.change_sequences(step)
        ids, num_tokens, num_new, blocks = (
            np.array(values, dtype=np.int64)
            for values in (step.sequence_ids, step.num_tokens, step.num_new_blocks, step.new_blocks)
        )
        table.append_blocks(ids, num_new, blocks)
        batch = table.batch(ids, num_tokens)
        logits, _ = path.forward(batch, table, np.zeros(0, dtype=np.int64), self._late_tokens(batch))
        table.computed(batch)
        ids = ids[batch.samples]
        positions = table.expect_tokens(ids)
        sampled = runner.sampler.begin(logits.float(), ids, positions)
        sampled.start_reading()
        nothing = np.zeros(len(ids), dtype=bool)
        return _Begun(step.id, ids, positions, sampled, began, time.perf_counter(), done, nothing, nothing)

    def _late_tokens(self, batch: StepBatch) -> LateTokens | None:
        """Input tokens that the step before has sampled, and that are on the device alone."""
        if self._begun is None:
            return None
        expected = np.flatnonzero(~self._begun.gone)
        source = expected[np.argsort(self._begun.ids[expected])]
        if len(source) == 0:
            return None
        at = np.minimum(np.searchsorted(self._begun.ids[source], batch.sequence_ids), len(source) - 1)
        late = np.flatnonzero(self._begun.ids[source[at]] == batch.sequence_ids)
        return LateTokens(batch.last[late], self._begun.sampled.token_ids, source[at[late]]) if len(late) else None

    def _finish(self, begun: _Begun) -> None:
        output = begun.sampled.read()
        runner, ids = self._runner, begun.ids
        table, tokens, failed = runner.table, output.token_ids.numpy(), output.failed
        # The step before may have failed for a sequence when this one had begun.
        dead = np.where(begun.gone, begun.had_failed, table.failed[ids])
        result = pb.StepResult(step_id=begun.step_id)
        for id in ids[dead]:
            result.failures.add(
                sequence_id=int(id), kind=pb.SequenceFailure.KIND_INTERNAL, message="the sequence has failed before"
            )
        for id, gone in zip(ids[~dead & failed], begun.gone[~dead & failed], strict=True):
            table.failed[id] |= not gone
            result.failures.add(
                sequence_id=int(id), kind=pb.SequenceFailure.KIND_NAN_LOGITS, message="the model produced NaN logits"
            )
        good = ~dead & ~failed
        here = good & ~begun.gone
        table.set_tokens(ids[here], begun.positions[here], tokens[here])
        runner.spans.sampled(ids[~begun.gone])
        add_tokens(result, ids, output, good)
        result.forward_us = int((begun.launched - begun.began) * 1e6)
        result.sample_us = int((time.perf_counter() - begun.launched) * 1e6)
        begun.done(result)
