"""Fills in the result of a step, in the contract's form."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.sampling import best_logprobs, token_logprobs

if TYPE_CHECKING:
    from gridwork_server.paths.sequence_table import SequenceTable, StepBatch
    from gridwork_server.sampling import SampleOutput

FAILED_BEFORE = "the sequence has failed before"


def add_tokens(result: "pb.StepResult", ids: np.ndarray, output: "SampleOutput", good: np.ndarray) -> None:
    """Adds the sampled tokens that are good. ids, good: int64 and bool `[n]`, for each row that was sampled."""
    result.sequence_ids.extend(ids[good].tolist())
    result.token_ids.extend(output.token_ids.numpy()[good].tolist())
    if output.logprobs is not None:
        result.logprobs.extend(output.logprobs[good].tolist())
    if output.num_top is not None and output.top_ids is not None and output.top_logprobs is not None:
        keep = np.repeat(good, output.num_top)
        result.num_top.extend(output.num_top[good].tolist())
        result.top_token_ids.extend(output.top_ids[keep].tolist())
        result.top_logprobs.extend(output.top_logprobs[keep].tolist())


def add_internal_failures(result: "pb.StepResult", ids: Iterable[int], message: str = FAILED_BEFORE) -> None:
    """Adds sequences that cannot be computed, with the reason."""
    for id in ids:
        result.failures.add(sequence_id=int(id), kind=pb.SequenceFailure.KIND_INTERNAL, message=message)


def add_sampling_failures(result: "pb.StepResult", ids: Iterable[int], reasons: Mapping[int, str]) -> None:
    """Adds sequences for which no token could be sampled: for a reason in `reasons`, by id, or else because their
    logits were NaN or infinite."""
    for id in map(int, ids):
        if id in reasons:
            add_internal_failures(result, [id], reasons[id])
            continue
        result.failures.add(
            sequence_id=id, kind=pb.SequenceFailure.KIND_NAN_LOGITS, message="the model produced NaN logits"
        )


def wanted_prompt_tokens(table: "SequenceTable", batch: "StepBatch") -> np.ndarray:
    """int64: tokens of the batch whose logits are wanted for the log-probabilities of prompts."""
    wants = table.wants_prompt_logprobs[batch.sequence_ids]
    return np.flatnonzero(wants[batch.row]) if wants.any() else np.array([], dtype=np.int64)


def add_prompt_logprobs(
    result: "pb.StepResult", table: "SequenceTable", batch: "StepBatch", logits: torch.Tensor, kept: np.ndarray
) -> None:
    """Adds log-probabilities of prompts. The logits at a position give that of the token at the next one. logits:
    `[len(kept), vocab_size]`; kept: int64, the tokens of the batch that they belong to, ascending."""
    for i in np.flatnonzero(table.wants_prompt_logprobs[batch.sequence_ids]):
        sequence = int(batch.sequence_ids[i])
        first = int(batch.last[i] - batch.num_tokens[i] + 1)
        positions = batch.positions[first : batch.last[i] + 1]
        positions = positions[positions + 1 < table.num_prompt[sequence]]
        if len(positions) == 0:
            continue
        rows = np.searchsorted(kept, np.arange(first, first + len(positions)))
        tokens = table.token_ids[sequence, positions + 1].astype(np.int64)
        of_positions = logits[torch.from_numpy(rows).to(logits.device)].float()
        logprobs = token_logprobs(of_positions, torch.from_numpy(tokens).to(logits.device))
        reported = result.prompt_logprobs.add(
            sequence_id=sequence, first_position=int(positions[0]) + 1, logprobs=logprobs.tolist()
        )
        top_n = min(int(table.top_n_prompt_logprobs[sequence]), logits.shape[1])
        if top_n > 0:
            top_ids, top_logprobs = best_logprobs(of_positions, top_n)
            reported.top_n = top_n
            reported.top_token_ids.extend(top_ids.flatten().tolist())
            reported.top_logprobs.extend(top_logprobs.flatten().tolist())
