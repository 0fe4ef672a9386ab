"""Runs steps: the model, the cache and the sampler of one rank."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from loguru import logger

from gridwork_kernels.device_copies import to_device
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.errors import LimitError
from gridwork_server.model.info import common_info
from gridwork_server.model.loading import LoadedModel
from gridwork_server.model.token_bounds import TokenBounds
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths.invariance import invariance_of
from gridwork_server.paths.memory import cache_budget_bytes
from gridwork_server.paths.sequence_table import SequenceTable
from gridwork_server.sampling import Grammars, Sampler, neutral_parameters, taken
from gridwork_server.step import memory_profile, result
from gridwork_server.step.cache_size import CacheSize, cache_size
from gridwork_server.step.in_flight import InFlightStep
from gridwork_server.step.request_ids import RequestIds
from gridwork_server.tracing import NoSpans, SequenceSpans

if TYPE_CHECKING:
    from concurrent.futures import Future

    from gridwork_server.sampling import SampleOutput, TokenChecks, TokenMasks

_DRAFT_STEP_TOKENS = {"cpu": 16, "cuda": 128}
"""Maximum number of tokens in a step with drafts, by device: about as many as are computed while the weights are read.
Beyond that number a draft costs nearly as much as a token that is certain."""


class Runner:
    """One rank's share of every step. Every rank runs the same steps; rank 0 samples and answers.

    A step is begun and then finished. `run` does both; `OverlappedSteps` begins the next step in between.
    """

    def __init__(
        self, loaded: LoadedModel, config: ShardConfig, group: RankGroup, spans: SequenceSpans | None = None
    ) -> None:
        self.loaded = loaded
        self.config = config
        self.group = group
        self.spans: SequenceSpans | NoSpans = spans or NoSpans()
        self.request_ids = RequestIds()
        self.path = loaded.path
        has_encoder = bool(loaded.config.is_encoder_decoder)
        self.bounds = TokenBounds(loaded.input_vocab_size, loaded.vocab_size, has_encoder)
        self.grammars: Grammars | None = None
        """Grammars of sequences; None on other ranks than 0, and when the router has told no tokens."""
        self._reasons: dict[int, str] = {}
        """Reasons why sequences cannot be computed, by id, until a result has told them."""

    @property
    def draft_step_tokens(self) -> int:
        """Maximum number of tokens in a step for which drafts are worth their cost; 0: the path takes no drafts."""
        return _DRAFT_STEP_TOKENS[self.loaded.device.type] if self.path.takes_drafts else 0

    def warm_up(self, limits: "pb.WarmupRequest") -> CacheSize:
        """Allocates the cache for these limits and runs a first step. Raises LimitError."""
        if min(limits.block_size_tokens, limits.max_batch_tokens, limits.max_sequences) < 1:
            raise LimitError("block size, batch tokens and sequences must be at least 1")
        if limits.prefix_cache and not self.path.shares_blocks:
            raise LimitError(f"the {self.path.name} path cannot share what it computes: no prefix cache is possible")
        if limits.max_drafts and not self.path.takes_drafts:
            raise LimitError(f"the {self.path.name} path computes one token of a decode: no drafts are possible")
        # Memory of an earlier cache must count as free.
        self._free_cache()
        step_bytes = 0
        if self.config.kv_cache_memory_bytes is None:
            step_bytes = memory_profile.step_bytes(self.path, limits, self.loaded.vocab_size, self.loaded.device)
            self._free_cache()
        budget = cache_budget_bytes(
            self.loaded.device,
            self.config.kv_cache_memory_bytes,
            self.config.cuda_memory_fraction,
            self.group.world_size,
            step_bytes,
        )
        needs = self.path.needs.without_windows() if limits.prefix_cache else self.path.needs
        size = cache_size(needs, limits, budget, self.group)
        size.check(limits)
        error = self._allocate(limits, size.num_blocks)
        if self.group.minimum(0 if error else 1) == 0:
            raise LimitError(error or "another rank could not allocate its part of the cache")
        self._make_grammars(limits)
        self._run_first_steps(size.num_blocks)
        tokens = size.num_blocks * limits.block_size_tokens
        logger.info(
            f"KV cache: {tokens} tokens in {size.num_blocks} blocks, {size.bytes / 2**20:.0f} MiB "
            f"({size.bytes_per_token} bytes a token)"
        )
        return size

    def info(self) -> "pb.InfoResponse":
        """Description of the loaded model."""
        loaded, path = self.loaded, self.path
        invariance = invariance_of(path, loaded.model, loaded.device, self.group.world_size)
        info = common_info(loaded, self.group.world_size)
        info.MergeFrom(
            pb.InfoResponse(
                task=pb.TASK_GENERATE,
                model_impl=path.name,
                model_impl_reason=loaded.path_reason,
                attention=path.attention_name,
                input_vocab_size=loaded.input_vocab_size,
                max_context_tokens=loaded.max_context_tokens,
                eos_token_ids=loaded.eos_token_ids,
                shares_blocks=path.shares_blocks,
                batch_invariant=invariance.in_batch,
                replay_invariant=invariance.when_replayed,
                invariance_reason=invariance.reason,
                draft_step_tokens=self.draft_step_tokens,
                generation_defaults=loaded.generation.message(),
                length_border=loaded.lengths.rule.border if loaded.lengths else 0,
                lengths_apart=loaded.lengths is not None and loaded.lengths.rule.apart,
                recompute_at_tokens=loaded.lengths.recompute_at if loaded.lengths else 0,
            )
        )
        return info

    def reset(self) -> None:
        """Drops every sequence."""
        ids = np.arange(self._limits.max_sequences)
        self.spans.release(ids.tolist())
        self.table.release(ids)
        self.path.reset()
        if self.grammars is not None:
            self.grammars.reset()
        self.sampler = Sampler(self._limits.max_sequences, self.loaded.vocab_size, self.loaded.device)

    def run(self, step: "pb.Step") -> "pb.StepResult":
        """Computes one step. On ranks other than 0 the result is empty."""
        return self.finish(self.begin(step))

    @torch.inference_mode()
    def begin(self, step: "pb.Step", after: InFlightStep | None = None) -> InFlightStep:
        """Computes a step up to the sampling of its tokens, without reading them.

        after: the step before, when that one is not finished. Tokens that it samples stay on the device, so the path
        must take these (`takes_device_tokens`), and neither step may have drafts.
        """
        if after is not None and (step.released or step.admitted):
            after.forget(np.array([*step.released, *(new.id for new in step.admitted)]), self.table.failed)
        begun = InFlightStep(pb.StepResult(step_id=step.id))
        self._change_sequences(step)
        ids, num_tokens = _array(step.sequence_ids), _array(step.num_tokens)
        self.table.append_blocks(ids, _array(step.num_new_blocks), _array(step.new_blocks))
        num_drafts = None
        if step.drafts:
            num_drafts = _array(step.num_drafts)
            self.sampler.check_drafts(ids[num_drafts > 0])
            self.table.set_drafts(ids, num_drafts, _array(step.drafts))
        dead = self.table.failed[ids]
        if dead.any():
            for id in ids[dead].tolist():
                result.add_internal_failures(begun.result, [id], self._reasons.pop(id, result.FAILED_BEFORE))
            ids, num_tokens = ids[~dead], num_tokens[~dead]
            num_drafts = num_drafts[~dead] if num_drafts is not None else None
        if len(ids) == 0:
            return begun
        batch = self.table.batch(ids, num_tokens, num_drafts)
        batch.device_tokens = after.tokens_for(batch) if after is not None else None
        begun.started = time.perf_counter()
        of_prompts = result.wanted_prompt_tokens(self.table, batch)
        begun.ids = ids[batch.samples]
        begun.positions = batch.positions[batch.sampled] + 1
        begun.released = begun.had_failed = np.zeros(len(begun.ids), dtype=bool)
        if batch.has_drafts:
            begun.counts = batch.num_drafts[batch.samples] + 1
            begun.inputs = batch.input_ids[batch.sampled]
        masks, checks = self._start_masks(begun, after)
        logits, kept = self.path.forward(batch, self.table, of_prompts)
        begun.computed = time.perf_counter()
        self.table.computed(batch)
        if self.group.is_leader and len(of_prompts):
            result.add_prompt_logprobs(begun.result, self.table, batch, logits, kept)
        if begun.counts is None:
            self.table.expect_tokens(begun.ids)
        # An empty sample is read too where steps overlap, to know when the step has been computed.
        if self.group.is_leader and (len(batch.sampled) or self.path.takes_device_tokens):
            if len(kept) != len(batch.sampled):
                logits = logits[to_device(np.searchsorted(kept, batch.sampled), logits.device)]
            begun.masks = masks.result() if masks is not None else None
            text = self.table.token_ids
            begun.sampled = self.sampler.begin(logits.float(), begun.rows, begun.positions, begun.masks, text, checks)
            begun.sampled.start_reading()
            begun.grammar_failures = (begun.masks.failures if begun.masks is not None else {}) | (
                checks.failures if checks is not None else {}
            )
        return begun

    @torch.inference_mode()
    def finish(self, begun: InFlightStep) -> "pb.StepResult":
        """Waits for the tokens of a step that has begun. Returns its result."""
        output = begun.sampled.read() if begun.sampled is not None else None
        if len(begun.ids):
            self._take_tokens(begun, output)
        if begun.started:
            begun.result.forward_us = int((begun.computed - begun.started) * 1e6)
            begun.result.sample_us = int((time.perf_counter() - begun.computed) * 1e6)
        return begun.result

    def fail(self, step: "pb.Step", message: str) -> "pb.StepResult":
        """Result of a step that raised an exception. Its sequences may hold anything by now: until they are released,
        steps that have them report them as failed."""
        for id in (*step.sequence_ids, *(new.id for new in step.admitted)):
            if id < len(self.table.failed):
                self.table.failed[id] = True
        return pb.StepResult(step_id=step.id, error=message)

    def _change_sequences(self, step: "pb.Step") -> None:
        """Releases and admits the sequences that a step names."""
        if step.released:
            released = _array(step.released)
            self.table.release(released)
            self.path.release(released)
            self.sampler.release(step.released)
            if self.grammars is not None:
                self.grammars.release(step.released)
            self.spans.release(step.released)
            self.request_ids.release(step.released)
        for new in step.admitted:
            self._reasons.pop(new.id, None)
            self.request_ids.admit(new.id, new.request_id, new.traceparent)
            if (refusal := self._refusal(new)) is not None:
                self.table.failed[new.id] = True
                self._reasons[new.id] = refusal
                continue
            self.table.admit(new)
            # An encoder's prompt is no part of the text that penalties apply to.
            first = new.num_prompt_tokens if self.loaded.config.is_encoder_decoder else 0
            tokens = self.table.token_ids[new.id, first : len(new.token_ids)]
            num_prompt = new.num_prompt_tokens - first
            self.sampler.admit(new.id, tokens, num_prompt, new.sampling, new.logprobs, new.top_n_logprobs, first)
            if self.grammars is not None:
                self._admit_to_grammars(new)
            self.spans.admit(new.id, new.traceparent, len(new.token_ids), new.num_computed_tokens)

    def _refusal(self, new: "pb.NewSequence") -> str | None:
        """Reason why a sequence cannot be computed; None when it can."""
        if new.grammar and self.group.is_leader and self.grammars is None:
            return "it has a grammar, and WarmupRequest.tokens was empty"
        return self.bounds.refusal(new)

    def _admit_to_grammars(self, new: "pb.NewSequence") -> None:
        assert self.grammars is not None
        self.grammars.release((new.id,))
        if new.grammar:
            tokens = list(new.token_ids)
            self.grammars.admit(new.id, new.grammar, tokens[new.num_prompt_tokens :], len(tokens))

    def _start_masks(
        self, begun: InFlightStep, after: InFlightStep | None
    ) -> "tuple[Future[TokenMasks] | None, TokenChecks | None]":
        """Starts to compute the masks of sequences that have a grammar, beside the forward pass. Returns them, and the
        checks of the others."""
        grammars = self.grammars
        if grammars is None or not grammars.has_any:
            return None, None

        def feed_tokens_of_step_before() -> None:
            if after is not None and after.sampled is not None:
                output = after.sampled.read()
                good = ~output.failed & ~after.released
                grammars.feed(after.ids[good], after.positions[good], output.token_ids.numpy()[good])

        greedy = self.sampler.is_greedy(begun.ids)
        return grammars.start(begun.ids, begun.counts, begun.inputs, greedy, feed_tokens_of_step_before)

    def _take_tokens(self, begun: InFlightStep, output: "SampleOutput | None") -> None:
        """Appends sampled tokens to their sequences, and reports them. output: on rank 0."""
        ids, here = begun.ids, ~begun.released
        tokens, failed = self._agreed(begun, output)
        reasons = begun.grammar_failures
        # A sequence may have failed in the step before, after this one had begun.
        dead = np.where(begun.released, begun.had_failed, self.table.failed[ids])
        result.add_internal_failures(begun.result, ids[dead])
        if begun.counts is None:
            good = ~dead & ~failed
            lost = ~dead & failed
            kept = good & here
            self.table.set_tokens(ids[kept], begun.positions[kept], tokens[kept])
        else:
            good = taken(tokens, failed, begun.inputs, begun.counts)
            num_taken = np.add.reduceat(good, np.cumsum(begun.counts) - begun.counts, dtype=np.int64)
            self.table.append_tokens(ids, tokens[good], num_taken)
            # NaN logits after a draft are met again when the draft's position is computed with a certain token. NaN
            # logits before all drafts may come from these, since attention multiplies masked values by zero: the token
            # is computed again without drafts.
            lost = (num_taken == 0) & (begun.counts == 1)
        self.table.failed[ids[lost & here]] = True
        result.add_sampling_failures(begun.result, ids[lost], reasons)
        if self.bounds.may_sample_unusable:
            self._stop_unusable(begun.rows[good], tokens[good])
        if output is not None:
            self.spans.sampled(ids[here])
            result.add_tokens(begun.result, begun.rows, output, good)
            if self.grammars is not None and self.grammars.has_any:
                good = good & np.isin(begun.rows, ids[here])
                self.grammars.feed(begun.rows[good], begun.positions[good], tokens[good])
                self.grammars.report(begun.result, np.unique(begun.rows[good]))

    def _agreed(self, begun: InFlightStep, output: "SampleOutput | None") -> tuple[np.ndarray, np.ndarray]:
        """Sampled tokens, int64 `[k]`, and whether each failed, bool `[k]`: those of rank 0, on every rank, since the
        next step may compute them."""
        sampled = np.zeros((2, len(begun.positions)), dtype=np.int64)
        if output is not None:
            sampled[0], sampled[1] = output.token_ids.numpy(), output.failed
            if begun.grammar_failures:
                sampled[1] |= np.isin(begun.rows, list(begun.grammar_failures))
            if begun.masks is not None:
                sampled[1, begun.masks.behind_end] = 1
        sampled = self.group.broadcast_array(torch.from_numpy(sampled)).numpy()
        return sampled[0], sampled[1] != 0

    def _stop_unusable(self, ids: np.ndarray, tokens: np.ndarray) -> None:
        """Marks sequences whose newest token the model has no input for; they fail in the next step. ids, tokens:
        int64."""
        at = np.flatnonzero(self.bounds.unusable(tokens))
        for id, token in zip(ids[at].tolist(), tokens[at].tolist(), strict=True):
            self.table.failed[id] = True
            self._reasons[id] = self.bounds.message(token)

    def _allocate(self, limits: "pb.WarmupRequest", num_blocks: int) -> str | None:
        """Makes everything whose size depends on the limits. Returns the reason when it fails, for the ranks to agree
        on."""
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

    def _make_grammars(self, limits: "pb.WarmupRequest") -> None:
        if self.grammars is not None:
            self.grammars.close()
            self.grammars = None
        if self.group.is_leader and limits.tokens.lengths:
            size, device = self.loaded.vocab_size, self.loaded.device
            forced_up_to = self.draft_step_tokens // 2 if limits.max_drafts else 0
            self.grammars = Grammars(limits.tokens, size, device, forced_up_to)

    def _free_cache(self) -> None:
        self.path.allocate(pb.WarmupRequest(block_size_tokens=1, max_sequences=1), 0)

    def _run_first_steps(self, num_blocks: int) -> None:
        """Runs a chunk of prefill and a decode, so that whatever is set up at first use is set up now."""
        tokens = min(self._limits.max_batch_tokens, 16, num_blocks * self._limits.block_size_tokens - 1)
        if tokens < 1 or tokens + 1 > self.table.token_ids.shape[1] - 2:
            return
        needed = -(-(tokens + 1) // self._limits.block_size_tokens)
        step = pb.Step(id=0, sequence_ids=[0], num_tokens=[tokens], num_new_blocks=[needed], new_blocks=range(needed))
        step.admitted.add(
            id=0, token_ids=[0] * tokens, num_prompt_tokens=tokens, sampling=neutral_parameters(greedy=True)
        )
        self.run(step)
        self.run(pb.Step(id=0, sequence_ids=[0], num_tokens=[1], num_new_blocks=[0]))
        self.run(pb.Step(id=0, released=[0]))


def _array(values: Iterable[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)
