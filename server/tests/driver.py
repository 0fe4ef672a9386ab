"""A small router for tests: schedules sequences over a function that runs steps, with chunks, blocks and preemption."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.sampling import neutral_parameters


def sampling(**settings: Any) -> pb.SamplingParameters:
    """Neutral parameters except for the given ones; greedy unless there is a seed."""
    return neutral_parameters(**({"greedy": "seed" not in settings} | settings))


@dataclass
class Sequence:
    """State of a running sequence."""

    name: int
    id: int
    tokens: list[int]
    num_prompt: int
    wanted: int
    settings: pb.SamplingParameters
    prompt_logprobs: bool = False
    prompt_top_n: int = 0
    top_n: int = 0
    may_draft: bool = True
    grammar: str = ""
    has_ended: bool = False
    """True if its grammar allows nothing more."""
    forced: list[int] = field(default_factory=list)
    """Tokens that its grammar forces."""
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    admitted: bool = False
    num_first: int = 0
    """Number of tokens that count as computed together."""

    @property
    def generated(self) -> list[int]:
        """Tokens after the prompt."""
        return self.tokens[self.num_prompt :]

    @property
    def done(self) -> bool:
        """True if the sequence has all its tokens."""
        return self.has_ended or len(self.generated) >= self.wanted


class Driver:
    """Runs requests through a function from Step to StepResult."""

    def __init__(
        self,
        run: Callable[[pb.Step], pb.StepResult],
        num_blocks: int,
        block_size: int = 4,
        chunk: int = 1000,
        max_sequences: int = 8,
        seed: int = 0,
        draft: Callable[[Sequence], list[int]] = lambda _sequence: [],
        recompute_at: int = 0,
    ) -> None:
        """Blocks are handed out in random order, so that tables are fragmented. draft: makes drafts for a sequence in
        decode; recompute_at: see InfoResponse.recompute_at_tokens."""
        self._run = run
        self._draft = draft
        self._recompute_at = recompute_at
        self._random = random.Random(seed)
        self._free = list(range(num_blocks))
        self._random.shuffle(self._free)
        self._block_size = block_size
        self._chunk = chunk
        self._ids = list(range(max_sequences - 1, -1, -1))
        self._released: list[int] = []
        self._next_name = 0
        self._next_step = 1
        self.running: list[Sequence] = []
        self.finished: dict[int, Sequence] = {}
        self.failures: dict[int, pb.SequenceFailure] = {}
        self.prompt_logprobs: dict[int, dict[int, float]] = {}
        self.prompt_tops: dict[int, dict[int, dict[int, float]]] = {}
        self.results: list[pb.StepResult] = []

    def add(
        self,
        prompt: list[int],
        wanted: int,
        settings: pb.SamplingParameters | None = None,
        prompt_logprobs: bool = False,
        num_prompt: int | None = None,
        top_n: int = 0,
        prompt_top_n: int = 0,
        grammar: str = "",
    ) -> int:
        """Adds a request and returns its name. num_prompt: length of the prompt, when part of `prompt` was generated
        before; top_n: number of most likely tokens to report; 0: no log-probabilities; prompt_top_n: the same number
        for positions of the prompt."""
        name, self._next_name = self._next_name, self._next_name + 1
        sequence = Sequence(
            name, self._ids.pop(), list(prompt), num_prompt or len(prompt), wanted, settings or sampling()
        )
        sequence.prompt_logprobs = prompt_logprobs
        sequence.top_n = top_n
        sequence.prompt_top_n = prompt_top_n
        sequence.grammar = grammar
        self.running.append(sequence)
        return name

    def preempt(self, name: int) -> None:
        """Preempts a running sequence: frees its blocks. It is computed again from its tokens."""
        sequence = next(sequence for sequence in self.running if sequence.name == name)
        self._release(sequence)
        sequence.id, sequence.computed, sequence.admitted = self._ids.pop(), 0, False

    def step(self) -> pb.StepResult:
        """Runs one step over all running sequences."""
        step = pb.Step(id=self._next_step)
        self._next_step += 1
        for sequence in self.running:
            if sequence.admitted and sequence.num_first < self._recompute_at <= len(sequence.tokens):
                self.preempt(sequence.name)
        step.released.extend(self._released)
        self._released = []
        for sequence in self.running:
            if not sequence.admitted:
                crosses = sequence.num_prompt < self._recompute_at <= len(sequence.tokens)
                sequence.num_first = self._recompute_at if crosses else sequence.num_prompt
                step.admitted.add(
                    id=sequence.id,
                    token_ids=sequence.tokens,
                    num_prompt_tokens=sequence.num_prompt,
                    sampling=sequence.settings,
                    prompt_logprobs=sequence.prompt_logprobs,
                    top_n_prompt_logprobs=sequence.prompt_top_n,
                    logprobs=sequence.top_n > 0,
                    top_n_logprobs=sequence.top_n,
                    num_first_tokens=sequence.num_first,
                    grammar=sequence.grammar,
                )
                sequence.admitted = True
            count = min(self._chunk, len(sequence.tokens) - sequence.computed)
            decodes = sequence.generated and count == len(sequence.tokens) - sequence.computed == 1
            room = sequence.wanted - len(sequence.generated) - 1
            if sequence.num_first < self._recompute_at:
                room = max(0, min(room, self._recompute_at - 1 - len(sequence.tokens)))
            drafts = self._draft(sequence)[:room] if decodes and sequence.may_draft else []
            end = sequence.computed + count + len(drafts)
            new = max(0, -(-end // self._block_size) - len(sequence.blocks))
            blocks = [self._free.pop() for _ in range(new)]
            sequence.blocks += blocks
            if drafts:
                # The state if the step takes no token: the step is then repeated without drafts.
                sequence.may_draft = False
            else:
                sequence.computed += count
            step.sequence_ids.append(sequence.id)
            step.num_tokens.append(count + len(drafts))
            step.num_drafts.append(len(drafts))
            step.drafts.extend(drafts)
            step.num_new_blocks.append(new)
            step.new_blocks.extend(blocks)
        result = self._run(step)
        assert result.step_id == step.id
        self.results.append(result)
        by_id = {sequence.id: sequence for sequence in self.running}
        for failure in result.failures:
            self.failures[by_id[failure.sequence_id].name] = failure
        for id, token in zip(result.sequence_ids, result.token_ids, strict=True):
            by_id[id].tokens.append(token)
            by_id[id].computed, by_id[id].may_draft = len(by_id[id].tokens) - 1, True
            by_id[id].forced = []
        for id in result.ended:
            by_id[id].has_ended = True
        forced = iter(result.forced)
        for id, count in zip(result.forced_sequence_ids, result.num_forced, strict=True):
            by_id[id].forced = list(itertools.islice(forced, count))
        for entry in result.prompt_logprobs:
            known = self.prompt_logprobs.setdefault(by_id[entry.sequence_id].name, {})
            known.update(enumerate(entry.logprobs, entry.first_position))
            tops = self.prompt_tops.setdefault(by_id[entry.sequence_id].name, {})
            assert len(entry.top_token_ids) == len(entry.top_logprobs) == entry.top_n * len(entry.logprobs)
            for index in range(len(entry.logprobs) if entry.top_n else 0):
                of_position = slice(index * entry.top_n, (index + 1) * entry.top_n)
                pairs = zip(entry.top_token_ids[of_position], entry.top_logprobs[of_position], strict=True)
                tops[entry.first_position + index] = dict(pairs)
        for sequence in list(self.running):
            if sequence.done or sequence.name in self.failures:
                self.running.remove(sequence)
                self.finished[sequence.name] = sequence
                self._release(sequence)
        return result

    def finish(self) -> dict[int, list[int]]:
        """Runs until all sequences have finished. Returns the generated tokens by name."""
        while self.running:
            self.step()
        return {name: sequence.generated for name, sequence in self.finished.items()}

    def _release(self, sequence: Sequence) -> None:
        self._released.append(sequence.id)
        self._ids.append(sequence.id)
        self._free += sequence.blocks
        self._random.shuffle(self._free)
        sequence.blocks = []
