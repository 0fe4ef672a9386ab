"""Decode steps whose tokens stay on the device: each begins before the tokens of the one before it have been read.

A step that only decodes takes its input from what the last one sampled, without a way over the host. While it is
computed, the host reads the last one's tokens and tells the router, which sends steps ahead. Any other step waits for
what has begun, and is run as ever.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.decode_replay import LateTokens
from gridwork_server.paths.paged import PagedPath
from gridwork_server.sampling.sampled import Sampled
from gridwork_server.step_result import add_tokens

if TYPE_CHECKING:
    from gridwork_server.runner import Runner

Done = Callable[["pb.StepResult"], Any]


@dataclass
class _Begun:
    """A step whose tokens have not been read. n sequences."""

    step_id: int
    ids: np.ndarray
    """int64 `[n]`"""
    positions: np.ndarray
    """int64 `[n]`: where in its sequence each new token stands."""
    sampled: Sampled
    began: float
    launched: float
    done: Done


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
        runner, path = self._runner, self._runner.path
        if step.admitted or step.released or not isinstance(path, PagedPath):
            return False
        if not path.replays(len(step.sequence_ids), sum(step.num_tokens)):
            return False
        table, ids = runner.table, np.array(step.sequence_ids, dtype=np.int64)
        end = table.num_computed[ids] + 1
        asks_for_prompt = table.wants_prompt_logprobs[ids] & (end < table.num_prompt[ids])
        samples = end == table.num_known[ids]
        return bool(samples.all() and not asks_for_prompt.any() and not table.failed[ids].any())

    def _begin(self, step: "pb.Step", done: Done) -> _Begun:
        began = time.perf_counter()
        runner, path = self._runner, self._runner.path
        assert isinstance(path, PagedPath)
        table, ids = runner.table, np.array(step.sequence_ids, dtype=np.int64)
        num_new, blocks = (np.array(values, dtype=np.int64) for values in (step.num_new_blocks, step.new_blocks))
        table.append_blocks(ids, num_new, blocks)
        batch = table.batch(ids, np.ones_like(ids))
        logits = path.decode(batch, table, self._late_tokens(ids))
        table.computed(batch)
        positions = table.expect_tokens(ids)
        sampled = runner.sampler.begin(logits.float(), ids, positions)
        sampled.start_reading()
        return _Begun(step.id, ids, positions, sampled, began, time.perf_counter(), done)

    def _late_tokens(self, ids: np.ndarray) -> LateTokens | None:
        """Input tokens that the step before has sampled, and that are on the device alone."""
        if self._begun is None:
            return None
        order = np.argsort(self._begun.ids)
        at = np.minimum(np.searchsorted(self._begun.ids, ids, sorter=order), len(order) - 1)
        source = order[at]
        rows = np.flatnonzero(self._begun.ids[source] == ids)
        return LateTokens(rows, self._begun.sampled.token_ids, source[rows]) if len(rows) else None

    def _finish(self, begun: _Begun) -> None:
        output = begun.sampled.read()
        runner, ids = self._runner, begun.ids
        table, tokens, failed = runner.table, output.token_ids.numpy(), output.failed
        # The step before may have failed for a sequence when this one had begun.
        dead = table.failed[ids]
        result = pb.StepResult(step_id=begun.step_id)
        for id in ids[dead]:
            result.failures.add(
                sequence_id=int(id), kind=pb.SequenceFailure.KIND_INTERNAL, message="the sequence has failed before"
            )
        for id in ids[~dead & failed]:
            table.failed[id] = True
            result.failures.add(
                sequence_id=int(id), kind=pb.SequenceFailure.KIND_NAN_LOGITS, message="the model produced NaN logits"
            )
        good = ~dead & ~failed
        table.set_tokens(ids[good], begun.positions[good], tokens[good])
        runner.spans.sampled(ids)
        add_tokens(result, ids, output, good)
        result.forward_us = int((begun.launched - begun.began) * 1e6)
        result.sample_us = int((time.perf_counter() - begun.launched) * 1e6)
        begun.done(result)
