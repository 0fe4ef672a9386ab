"""Runs steps: the model, the cache and the sampler of one rank."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from loguru import logger

from gridwork_kernels.device_copies import to_device
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.errors import LimitError
from gridwork_server.model.loading import LoadedModel
from gridwork_server.model.token_bounds import TokenBounds
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths.base import CacheNeeds
from gridwork_server.paths.memory import cache_budget_bytes
from gridwork_server.paths.sequence_table import SequenceTable, StepBatch
from gridwork_server.paths.window_blocks import most_in_use
from gridwork_server.sampling import Sampler, best_logprobs, taken, token_logprobs
from gridwork_server.step import memory_profile
from gridwork_server.step.result import add_tokens
from gridwork_server.tracing import NoSpans, SequenceSpans

if TYPE_CHECKING:
    from collections.abc import Iterable


_KEPT = 4
"""With a prefix cache, it is worth room for so many times what can be in use at once."""


_DRAFT_STEP_TOKENS = {"cpu": 16, "cuda": 128}
"""By device: about as many tokens as are computed while the weights are read. From there on a draft costs nearly what a
token costs that is certain."""


@dataclass(frozen=True)
class CacheSize:
    """What the cache came to."""

    num_blocks: int
    bytes: int
    """Over all ranks."""
    bytes_per_token: int
    """Over all ranks."""


class Runner:
    """One rank's share of every step. Every rank runs the same steps; rank 0 samples and answers."""

    def __init__(
        self, loaded: LoadedModel, config: ShardConfig, group: RankGroup, spans: SequenceSpans | None = None
    ) -> None:
        """Raises ModelError when the attention implementation that was asked for cannot be used."""
        self.loaded = loaded
        self.config = config
        self.group = group
        self.spans: SequenceSpans | NoSpans = spans or NoSpans()
        self.path = loaded.path
        has_encoder = bool(loaded.config.is_encoder_decoder)
        self.bounds = TokenBounds(loaded.input_vocab_size, loaded.vocab_size, has_encoder)
        self._reasons: dict[int, str] = {}
        """Of sequences that have failed and whose failure no result has told yet."""

    @property
    def draft_step_tokens(self) -> int:
        """Up to how many tokens of a step drafts are worth what they cost; 0: the path takes none."""
        return _DRAFT_STEP_TOKENS[self.loaded.device.type] if self.path.takes_drafts else 0

    def warm_up(self, limits: "pb.WarmupRequest") -> CacheSize:
        """Allocates the cache for these limits and runs a first step. Raises LimitError."""
        if min(limits.block_size_tokens, limits.max_batch_tokens, limits.max_sequences) < 1:
            raise LimitError("block size, batch tokens and sequences must be at least 1")
        if limits.prefix_cache and not self.path.shares_blocks:
            raise LimitError(f"the {self.path.name} path cannot share what it computes: no prefix cache is possible")
        if limits.max_drafts and not self.path.takes_drafts:
            raise LimitError(f"the {self.path.name} path computes one token of a decode: no drafts are possible")
        # What was there before must count as free.
        self._free_cache()
        step_bytes = 0
        if self.config.kv_cache_memory_bytes is None:
            step_bytes = memory_profile.step_bytes(self.path, limits, self.loaded.vocab_size, self.loaded.device)
            self._free_cache()
        size = self._size_cache(limits, step_bytes)
        _check_capacity(size, limits)
        error = self._allocate(limits, size.num_blocks)
        if self.group.minimum(0 if error else 1) == 0:
            raise LimitError(error or "another rank could not allocate its part of the cache")
        self._run_first_steps(size.num_blocks)
        tokens = size.num_blocks * limits.block_size_tokens
        logger.info(
            f"KV cache: {tokens} tokens in {size.num_blocks} blocks, {size.bytes / 2**20:.0f} MiB "
            f"({size.bytes_per_token} bytes a token)"
        )
        return size

    def reset(self) -> None:
        """Drops every sequence."""
        ids = np.arange(self._limits.max_sequences)
        self.spans.release(ids.tolist())
        self.table.release(ids)
        self.path.reset()
        self.sampler = Sampler(self._limits.max_sequences, self.loaded.vocab_size, self.loaded.device)

    @torch.inference_mode()
    def run(self, step: "pb.Step") -> "pb.StepResult":
        """Computes one step. On ranks other than 0 the result is empty."""
        result = pb.StepResult(step_id=step.id)
        self.change_sequences(step)
        ids, num_tokens = _array(step.sequence_ids), _array(step.num_tokens)
        if step.new_blocks:
            self.table.append_blocks(ids, _array(step.num_new_blocks), _array(step.new_blocks))
        num_drafts = None
        if step.drafts:
            num_drafts = _array(step.num_drafts)
            self.table.set_drafts(ids, num_drafts, _array(step.drafts))
        dead = self.table.failed[ids]
        if dead.any():
            for id in ids[dead].tolist():
                reason = self._reasons.pop(id, "the sequence has failed before")
                self._report_failures(result, [id], pb.SequenceFailure.KIND_INTERNAL, reason)
            ids, num_tokens = ids[~dead], num_tokens[~dead]
            num_drafts = num_drafts[~dead] if num_drafts is not None else None
        if len(ids) == 0:
            return result
        batch = self.table.batch(ids, num_tokens, num_drafts)
        started = time.perf_counter()
        of_prompts = self._wanted_prompt_tokens(batch)
        logits, kept = self.path.forward(batch, self.table, of_prompts)
        computed = time.perf_counter()
        self.table.computed(batch)
        if self.group.is_leader and len(of_prompts):
            self._report_prompt_logprobs(result, batch, logits, kept)
        self._sample(result, batch, logits, kept)
        result.forward_us = int((computed - started) * 1e6)
        result.sample_us = int((time.perf_counter() - computed) * 1e6)
        return result

    def fail(self, step: "pb.Step", message: str) -> "pb.StepResult":
        """The result of a step that raised an exception. Nobody knows what its sequences have by now: until they are
        released, steps that have them report them as failed."""
        for id in (*step.sequence_ids, *(new.id for new in step.admitted)):
            if id < len(self.table.failed):
                self.table.failed[id] = True
        return pb.StepResult(step_id=step.id, error=message)

    def change_sequences(self, step: "pb.Step") -> None:
        """Lets go what a step releases and takes in what it admits."""
        if step.released:
            released = _array(step.released)
            self.table.release(released)
            self.path.release(released)
            self.sampler.release(step.released)
            self.spans.release(step.released)
        for new in step.admitted:
            self._reasons.pop(new.id, None)
            if (refusal := self.bounds.refusal(new)) is not None:
                self.table.failed[new.id] = True
                self._reasons[new.id] = refusal
                continue
            self.table.admit(new)
            # An encoder's prompt is no part of the text that penalties are for.
            first = new.num_prompt_tokens if self.loaded.config.is_encoder_decoder else 0
            tokens = self.table.token_ids[new.id, first : len(new.token_ids)]
            num_prompt = new.num_prompt_tokens - first
            self.sampler.admit(new.id, tokens, num_prompt, new.sampling, new.logprobs, new.top_n_logprobs)
            self.spans.admit(new.id, new.traceparent)

    def _wanted_prompt_tokens(self, batch: StepBatch) -> np.ndarray:
        """int64: tokens of the batch whose logits are wanted for the log-probabilities of prompts."""
        wants = self.table.wants_prompt_logprobs[batch.sequence_ids]
        return np.flatnonzero(wants[batch.row]) if wants.any() else np.array([], dtype=np.int64)

    def _sample(self, result: "pb.StepResult", batch: StepBatch, logits: torch.Tensor, kept: np.ndarray) -> None:
        if len(batch.sampled) == 0:
            return
        ids = batch.sequence_ids[batch.samples]
        counts = batch.num_drafts[batch.samples] + 1 if batch.has_drafts else None
        of_tokens = ids if counts is None else np.repeat(ids, counts)
        sampled = np.zeros((2, len(of_tokens)), dtype=np.int64)
        if self.group.is_leader:
            rows = logits
            if len(kept) != len(of_tokens):
                rows = logits[to_device(np.searchsorted(kept, batch.sampled), logits.device)]
            output = self.sampler.sample(rows.float(), of_tokens, batch.positions[batch.sampled] + 1)
            sampled[0], sampled[1] = output.token_ids.numpy(), output.failed
        # Every rank must know the tokens, since the next step may compute them.
        sampled = self.group.broadcast_array(torch.from_numpy(sampled)).numpy()
        failed = sampled[1] != 0
        if counts is None:
            good = ~failed
            dead = ids[failed]
            self.table.append_tokens(ids[good], sampled[0][good])
        else:
            good = taken(sampled[0], failed, batch.input_ids[batch.sampled], counts)
            num_taken = np.add.reduceat(good, np.cumsum(counts) - counts, dtype=np.int64)
            self.table.append_tokens(ids, sampled[0][good], num_taken)
            dead = ids[(num_taken == 0) & (counts == 1)]
        if self.bounds.may_sample_unusable:
            self._stop_unusable(of_tokens[good], sampled[0][good])
        # A failure behind a draft is met again where the draft is a token that is known. One before all drafts may be
        # theirs, since attention multiplies what it masks by zero: the token is computed again without them.
        if len(dead):
            self._report_failures(result, dead, pb.SequenceFailure.KIND_NAN_LOGITS, "the model produced NaN logits")
        if not self.group.is_leader:
            return
        self.spans.sampled(ids)
        add_tokens(result, of_tokens, output, good)

    def _stop_unusable(self, ids: np.ndarray, tokens: np.ndarray) -> None:
        """Sequences whose newest token cannot be computed fail when it would be. ids, tokens: int64."""
        at = np.flatnonzero(self.bounds.unusable(tokens))
        for id, token in zip(ids[at].tolist(), tokens[at].tolist(), strict=True):
            self.table.failed[id] = True
            self._reasons[id] = self.bounds.message(token)

    def _report_prompt_logprobs(
        self, result: "pb.StepResult", batch: StepBatch, logits: torch.Tensor, kept: np.ndarray
    ) -> None:
        """The logits at a position give the log-probability of the token at the next one."""
        for i in np.flatnonzero(self.table.wants_prompt_logprobs[batch.sequence_ids]):
            sequence = int(batch.sequence_ids[i])
            first = int(batch.last[i] - batch.num_tokens[i] + 1)
            positions = batch.positions[first : batch.last[i] + 1]
            positions = positions[positions + 1 < self.table.num_prompt[sequence]]
            if len(positions) == 0:
                continue
            rows = np.searchsorted(kept, np.arange(first, first + len(positions)))
            tokens = self.table.token_ids[sequence, positions + 1].astype(np.int64)
            of_positions = logits[torch.from_numpy(rows).to(logits.device)].float()
            logprobs = token_logprobs(of_positions, torch.from_numpy(tokens).to(logits.device))
            reported = result.prompt_logprobs.add(
                sequence_id=sequence, first_position=int(positions[0]) + 1, logprobs=logprobs.tolist()
            )
            top_n = min(int(self.table.top_n_prompt_logprobs[sequence]), logits.shape[1])
            if top_n > 0:
                top_ids, top_logprobs = best_logprobs(of_positions, top_n)
                reported.top_n = top_n
                reported.top_token_ids.extend(top_ids.flatten().tolist())
                reported.top_logprobs.extend(top_logprobs.flatten().tolist())

    def _report_failures(
        self, result: "pb.StepResult", ids: "Iterable[int]", kind: "pb.SequenceFailure.Kind", message: str
    ) -> None:
        for sequence_id in ids:
            self.table.failed[sequence_id] = True
            result.failures.add(sequence_id=int(sequence_id), kind=kind, message=message)

    def _allocate(self, limits: "pb.WarmupRequest", num_blocks: int) -> str | None:
        """Makes all that the limits determine the size of. Returns why it could not, for the ranks to agree on."""
        max_total_tokens = limits.max_total_tokens or num_blocks * limits.block_size_tokens
        self._limits = limits
        try:
            self.table = SequenceTable(limits.max_sequences, max_total_tokens, limits.block_size_tokens, num_blocks)
            self.sampler = Sampler(limits.max_sequences, self.loaded.vocab_size, self.loaded.device)
            self.path.allocate(limits, num_blocks)
        except (RuntimeError, MemoryError) as error:
            self._free_cache()
            return f"memory for {num_blocks} blocks cannot be allocated ({error}); give a smaller --kv-cache-memory"
        return None

    def _free_cache(self) -> None:
        self.path.allocate(pb.WarmupRequest(block_size_tokens=1, max_sequences=1), 0)

    def _size_cache(self, limits: "pb.WarmupRequest", step_bytes: int) -> CacheSize:
        needs = self._needs(limits)
        local = needs.bytes_per_token
        budget = cache_budget_bytes(
            self.loaded.device,
            self.config.kv_cache_memory_bytes,
            self.config.cuda_memory_fraction,
            self.group.world_size,
            step_bytes,
        )
        fixed = needs.bytes_per_sequence * limits.max_sequences
        if fixed > budget:
            raise LimitError(
                f"the states of {limits.max_sequences} sequences take {fixed} bytes, and the memory for them is "
                f"{budget}; give a smaller --max-batch-size, or more memory with --kv-cache-memory"
            )
        # Without a limit every sequence may become as long as there is memory, and the ids of its tokens take some too.
        ids = 0 if limits.max_total_tokens else np.dtype(np.int32).itemsize * limits.max_sequences
        num_blocks = self._num_blocks(budget - fixed, ids, limits)
        if limits.max_total_tokens:
            longest = -(-(limits.max_total_tokens + 1) // limits.block_size_tokens)
            # More than this can never be in use; what is kept for later requests may be more.
            num_blocks = min(num_blocks, longest * limits.max_sequences * (_KEPT if limits.prefix_cache else 1))
        num_blocks = min(self.group.minimum(num_blocks), 2**31 // limits.block_size_tokens)
        in_windows = min(num_blocks, most_in_use(needs.window_tokens, limits))
        local_bytes = limits.block_size_tokens * (
            num_blocks * (local - needs.window_bytes_per_token) + in_windows * needs.window_bytes_per_token
        )
        bytes_per_token, total_bytes = self.group.sum([local, local_bytes])
        return CacheSize(num_blocks, total_bytes, bytes_per_token)

    def _num_blocks(self, budget: int, id_bytes: int, limits: "pb.WarmupRequest") -> int:
        """Blocks that fit into so many bytes. id_bytes: for a token's id. Layers that see a window need no more than
        windows take."""
        needs = self._needs(limits)
        block = limits.block_size_tokens
        num_blocks = budget // max(1, (needs.bytes_per_token + id_bytes) * block)
        most = most_in_use(needs.window_tokens, limits)
        if not needs.window_tokens or num_blocks <= most:
            return num_blocks
        rest = budget - most * block * (needs.bytes_per_token + id_bytes)
        return most + rest // max(1, (needs.bytes_per_token - needs.window_bytes_per_token + id_bytes) * block)

    def _needs(self, limits: "pb.WarmupRequest") -> CacheNeeds:
        return self.path.needs.without_windows() if limits.prefix_cache else self.path.needs

    def _run_first_steps(self, num_blocks: int) -> None:
        """A chunk of prefill and a decode, so that whatever is set up at first use is set up now."""
        tokens = min(self._limits.max_batch_tokens, 16, num_blocks * self._limits.block_size_tokens - 1)
        if tokens < 1 or tokens + 1 > self.table.token_ids.shape[1] - 2:
            return
        needed = -(-(tokens + 1) // self._limits.block_size_tokens)
        step = pb.Step(id=0, sequence_ids=[0], num_tokens=[tokens], num_new_blocks=[needed], new_blocks=range(needed))
        step.admitted.add(
            id=0,
            token_ids=[0] * tokens,
            num_prompt_tokens=tokens,
            sampling=pb.SamplingParameters(greedy=True, temperature=1, top_p=1, typical_p=1, repetition_penalty=1),
        )
        self.run(step)
        self.run(pb.Step(id=0, sequence_ids=[0], num_tokens=[1], num_new_blocks=[0]))
        self.run(pb.Step(id=0, released=[0]))


def _check_capacity(size: CacheSize, limits: "pb.WarmupRequest") -> None:
    """Every rank comes to the same conclusion, since the size is agreed upon."""
    if size.num_blocks == 0:
        needed = limits.block_size_tokens * size.bytes_per_token
        raise LimitError(
            f"the memory for it does not hold one block of {limits.block_size_tokens} tokens, which takes {needed} "
            "bytes; give it more with --kv-cache-memory"
        )
    capacity = size.num_blocks * limits.block_size_tokens
    if capacity < limits.max_total_tokens:
        raise LimitError(
            f"it would hold {capacity} tokens, too few for one sequence of {limits.max_total_tokens} tokens; set "
            f"--max-total-tokens to {capacity} or less, or give it more memory with --kv-cache-memory"
        )


def _array(values: "Iterable[int]") -> np.ndarray:
    return np.array(values, dtype=np.int64)
