"""Steps that begin before the tokens of the step before have been read.

Decodes take their input from the device, where the last step has sampled it. While a step is computed, the host reads
the tokens of the last one and tells the router, which sends steps ahead. Some steps wait until the step in flight is
finished: steps with drafts, whose positions depend on how many of the last drafts were taken, steps that report
log-probabilities of prompts, and steps of sequences with rules on the tokens before.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.step.in_flight import InFlightStep
    from gridwork_server.step.runner import Runner

    Done = Callable[["pb.StepResult"], Any]


class OverlappedSteps:
    """Runs steps in order. A step's result may be delayed until the next step, or until `flush`."""

    def __init__(self, runner: "Runner") -> None:
        self._runner = runner
        self._in_flight: tuple[InFlightStep, Done] | None = None

    def submit(self, step: "pb.Step", done: "Done") -> None:
        """Computes a step, after those before it. done: called with the result, now or later, in order."""
        if not self._may_overlap(step):
            self.flush()
            done(self._runner.run(step))
            return
        before = self._in_flight
        self._in_flight = (self._runner.begin(step, before[0] if before is not None else None), done)
        if before is not None:
            self._finish(*before)

    @property
    def has_begun(self) -> bool:
        """True if a step is in flight."""
        return self._in_flight is not None

    @property
    def is_computed(self) -> bool:
        """True if the step in flight can be finished without waiting."""
        return self._in_flight is None or self._in_flight[0].can_be_read

    def flush(self) -> None:
        """Waits for the step in flight, and delivers its result."""
        before, self._in_flight = self._in_flight, None
        if before is not None:
            self._finish(*before)

    def _finish(self, begun: "InFlightStep", done: "Done") -> None:
        done(self._runner.finish(begun))

    def _may_overlap(self, step: "pb.Step") -> bool:
        runner = self._runner
        if not runner.path.takes_device_tokens or step.drafts or any(new.prompt_logprobs for new in step.admitted):
            return False
        bounds = runner.bounds
        if bounds.may_sample_unusable or any(bounds.refusal(new) is not None for new in step.admitted):
            return False
        table, ids = runner.table, np.array(step.sequence_ids, dtype=np.int64)
        # These flags may still be those of a sequence that this step releases: the step then waits once for nothing.
        asks_for_prompt = table.wants_prompt_logprobs[ids] & (table.num_computed[ids] + 1 < table.num_prompt[ids])
        if runner.sampler.reads_text(ids):
            return False
        return len(ids) > 0 and not asks_for_prompt.any() and not table.failed[ids].any()
