"""Overlapped steps give the results of steps one after the other."""

import gc
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.model import loading
from gridwork_server.paths.paged import PagedPath
from gridwork_server.service.worker import Worker
from gridwork_server.step.overlapped import OverlappedSteps
from gridwork_server.step.runner import Runner

from .. import models
from ..driver import Driver, sampling
from ..runners import load_runner

LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=4, max_total_tokens=60)
PROMPTS = models.prompts([23, 1, 12, 5])
COUNT = 12


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Runner:
    """Runner of a model with sliding windows and full attention, which replays decode steps."""
    monkeypatch.setattr(loading, "_decode_sizes", lambda config, device: (1, 2, 4))
    runner = load_runner(models.save("gemma3", tmp_path / "model"), LIMITS, kv_cache_memory_bytes=2**23)
    runner.reset()
    return runner


def alone(runner: Runner, settings: Any = None) -> list[list[int]]:
    """Continuations of PROMPTS, each by itself, one step after the other."""
    results = []
    for prompt in PROMPTS:
        runner.reset()
        driver = Driver(runner.run, 15)
        name = driver.add(prompt, COUNT, settings)
        results.append(driver.finish()[name])
    runner.reset()
    return results


class Ahead:
    """A router that sends every step before it has the results of earlier steps."""

    def __init__(self, runner: Runner, chunk: int = 64) -> None:
        """chunk: maximum number of tokens of a prompt in one step."""
        self.steps = OverlappedSteps(runner)
        self.chunk = chunk
        self.prompts = dict(enumerate(PROMPTS))
        self.results: list[pb.StepResult] = []
        self.sent = 0
        self.computed: dict[int, int] = {}

    def send(self, ids: list[int], admit: dict[int, Any] | None = None, released: list[int] | None = None) -> None:
        """Sends a step with the next token or chunk of each sequence. Sequence i has the blocks from 15 i on."""
        self.sent += 1
        step = pb.Step(id=self.sent, released=released or [])
        for id, settings in (admit or {}).items():
            prompt = self.prompts[id]
            step.admitted.add(id=id, token_ids=prompt, num_prompt_tokens=len(prompt), sampling=settings)
            self.computed[id] = 0
        for id in [*ids, *(admit or {})]:
            count = max(1, min(self.chunk, len(self.prompts[id]) - self.computed[id]))
            before = -(-self.computed[id] // 4)
            self.computed[id] += count
            new = -(-self.computed[id] // 4) - before
            step.sequence_ids.append(id)
            step.num_tokens.append(count)
            step.num_new_blocks.append(new)
            step.new_blocks.extend(range(15 * id + before, 15 * id + before + new))
        self.steps.submit(step, self.results.append)

    def tokens(self, id: int) -> list[int]:
        self.steps.flush()
        assert [result.step_id for result in self.results] == list(range(1, self.sent + 1)), "in order, each once"
        pairs = (zip(result.sequence_ids, result.token_ids, strict=True) for result in self.results)
        return [token for each in pairs for of, token in each if of == id]


def test_steps_that_are_sent_ahead_give_the_same_tokens(runner: Runner) -> None:
    # Random draws, so that tokens depend on more than the last token.
    settings = sampling(seed=5, temperature=1.5)
    expected = alone(runner, settings)
    ahead = Ahead(runner)
    ahead.send([], {0: settings})
    ahead.send([0])
    ahead.send([0], {1: settings, 2: settings})
    for _ in range(3):
        ahead.send([0, 1, 2])
    # Another order, with some left out; one joins, one leaves.
    ahead.send([2, 0])
    ahead.send([1, 2])
    ahead.send([2, 1, 0])
    ahead.send([0, 1, 2], {3: settings})
    ahead.send([3, 2, 0], released=[1])
    ahead.send([0, 3, 2])
    ahead.send([3, 0])
    for id in (0, 2, 3):
        tokens = ahead.tokens(id)
        assert tokens == expected[id][: len(tokens)]
    assert [len(ahead.tokens(id)) for id in range(4)] == [12, 7, 10, 4]
    assert ahead.tokens(1) == expected[1][:7]


def test_a_result_comes_with_the_next_step(runner: Runner) -> None:
    ahead = Ahead(runner)
    ahead.send([], {0: sampling(), 1: sampling()})
    assert len(ahead.results) == 0, "a prefill too"
    for sent in range(2, 6):
        ahead.send([0, 1])
        assert len(ahead.results) == sent - 1
    ahead.steps.flush()
    assert len(ahead.results) == 5
    ahead.steps.flush()
    assert len(ahead.results) == 5


def test_chunks_of_prompts_begin_beside_decodes_whose_input_is_on_the_device(runner: Runner) -> None:
    # Random draws, so that tokens depend on more than the last token.
    settings = sampling(seed=5, temperature=1.5)
    expected = alone(runner, settings)
    ahead = Ahead(runner, chunk=5)
    ahead.send([], {1: settings})
    ahead.send([1], {0: settings})
    ahead.send([0, 1], {2: settings})
    for sent in range(4, 11):
        ahead.send([1, 2, 0])
        assert len(ahead.results) == sent - 1
    # The prompt of 23 tokens took five steps, the one of 12 tokens three.
    assert [len(ahead.tokens(id)) for id in range(3)] == [5, 10, 6]
    for id in range(3):
        tokens = ahead.tokens(id)
        assert tokens == expected[id][: len(tokens)]


def test_an_id_may_be_reused_before_the_last_token_of_its_sequence_is_read(runner: Runner) -> None:
    expected = alone(runner)
    ahead = Ahead(runner, chunk=12)
    ahead.prompts[1] = PROMPTS[2]
    ahead.send([], {1: sampling(), 3: sampling()})
    ahead.send([1, 3])
    # The last tokens belong where the next sequence's prompt is, which is not computed yet.
    ahead.prompts[1] = PROMPTS[0]
    ahead.send([3], {1: sampling()}, released=[1])
    ahead.send([3, 1])
    assert runner.table.token_ids[1, : len(PROMPTS[0])].tolist() == PROMPTS[0]
    ahead.send([1, 3])
    # Nor does a failure of the earlier sequence fail the next one.
    _spoil(runner, 1)
    ahead.send([3, 1])
    ahead.send([3], {1: sampling()}, released=[1])
    ahead.send([1, 3])
    ahead.send([3, 1])
    assert ahead.tokens(1) == [*expected[2][:2], *expected[0][:2], *expected[0][:2]]
    assert ahead.tokens(3) == expected[3][:9]
    failures = [[(f.sequence_id, f.kind) for f in result.failures] for result in ahead.results]
    assert failures == [[]] * 5 + [[(1, pb.SequenceFailure.KIND_NAN_LOGITS)]] + [[]] * 3


def test_a_sequence_that_had_failed_before_its_release_is_reported(runner: Runner) -> None:
    expected = alone(runner)
    ahead = Ahead(runner)
    ahead.send([], {0: sampling(), 1: sampling()})
    ahead.send([0, 1])
    _spoil(runner, 1)
    ahead.send([0, 1])
    ahead.send([0, 1])
    ahead.send([0], released=[1])
    ahead.send([0], {1: sampling()})
    ahead.send([0, 1])
    assert ahead.tokens(0) == expected[0][:7]
    assert ahead.tokens(1) == [*expected[1][:2], *expected[1][:2]]
    failure = pb.SequenceFailure
    kinds = [[(f.sequence_id, f.kind) for f in result.failures] for result in ahead.results]
    assert kinds == [[], [], [(1, failure.KIND_NAN_LOGITS)], [(1, failure.KIND_INTERNAL)], [], [], []]


def test_steps_that_depend_on_more_than_tokens_wait(runner: Runner) -> None:
    expected = alone(runner)
    ahead = Ahead(runner)
    ahead.send([], {1: sampling()})
    assert len(ahead.results) == 0
    step = pb.Step(id=2, sequence_ids=[1], num_tokens=[3], num_new_blocks=[0], num_drafts=[2])
    step.drafts.extend(expected[1][1:3])
    ahead.steps.submit(step, ahead.results.append)
    assert [list(result.token_ids) for result in ahead.results] == [expected[1][:1], expected[1][1:4]]
    prompt = PROMPTS[0]
    step = pb.Step(id=3, sequence_ids=[0], num_tokens=[len(prompt)], num_new_blocks=[6], new_blocks=range(6))
    step.admitted.add(id=0, token_ids=prompt, num_prompt_tokens=len(prompt), sampling=sampling(), prompt_logprobs=True)
    ahead.steps.submit(step, ahead.results.append)
    assert len(ahead.results) == 3 and len(ahead.results[2].prompt_logprobs[0].logprobs) == len(prompt) - 1


def _spoil(runner: Runner, id: int) -> None:
    """Writes NaN into the first block of a sequence of `Ahead`, in the layer with full attention."""
    assert isinstance(runner.path, PagedPath)
    per_block = 1 if runner.path.attention_name == "cpu" else 4
    with torch.inference_mode():
        runner.path._keys[1, 0].unflatten(0, (-1, per_block))[15 * id] = torch.nan


def test_sequences_with_draws_and_penalties_overlap_too(runner: Runner) -> None:
    settings = sampling(seed=5, temperature=1.5, repetition_penalty=1.2, frequency_penalty=0.3, top_k=30)
    expected = alone(runner, settings)
    ahead = Ahead(runner)
    ahead.send([], {0: settings, 1: sampling(), 2: settings})
    for _ in range(COUNT - 1):
        ahead.send([0, 1, 2])
    assert len(ahead.results) == COUNT - 1
    assert ahead.tokens(0) == expected[0]
    assert ahead.tokens(2) == expected[2]


def test_log_probabilities_of_overlapped_steps_are_the_same(runner: Runner) -> None:
    def logprobs(submit: Callable[[pb.Step, Callable[[pb.StepResult], Any]], Any]) -> list[tuple[Any, ...]]:
        runner.reset()
        results: list[pb.StepResult] = []
        for i in range(6):
            step = pb.Step(id=i, sequence_ids=[0, 1], num_tokens=[1, 1])
            if i == 0:
                for id in (0, 1):
                    step.admitted.add(
                        id=id,
                        token_ids=PROMPTS[id][:1],
                        num_prompt_tokens=1,
                        sampling=sampling(),
                        logprobs=True,
                        top_n_logprobs=2 * id,
                    )
                step.num_new_blocks.extend([3, 3])
                step.new_blocks.extend(range(6))
            submit(step, results.append)
        steps.flush()
        return [
            (list(r.token_ids), list(r.logprobs), list(r.num_top), list(r.top_token_ids), list(r.top_logprobs))
            for r in results
        ]

    steps = OverlappedSteps(runner)
    plain = logprobs(lambda step, done: done(runner.run(step)))
    ahead = logprobs(steps.submit)
    assert len(plain) == 6 and [len(each[3]) for each in plain] == [2] * 6
    for one, other in zip(plain, ahead, strict=True):
        assert one[0] == other[0] and one[2:4] == other[2:4]
        assert one[1] == pytest.approx(other[1], abs=1e-5) and one[4] == pytest.approx(other[4], abs=1e-5)


def test_a_sequence_with_nan_logits_fails_alone_even_if_its_next_step_has_begun(runner: Runner) -> None:
    expected = alone(runner)
    ahead = Ahead(runner)
    ahead.send([], {0: sampling(), 1: sampling(), 2: sampling()})
    ahead.send([0, 1, 2])
    ahead.send([0, 1, 2])
    _spoil(runner, 1)
    for _ in range(4):
        ahead.send([0, 1, 2])
    assert ahead.tokens(0) == expected[0][:7]
    assert ahead.tokens(2) == expected[2][:7]
    assert ahead.tokens(1) == expected[1][:3]
    kinds = [[(f.sequence_id, f.kind) for f in result.failures] for result in ahead.results]
    failure = pb.SequenceFailure
    assert kinds[:3] == [[], [], []]
    assert kinds[3] == [(1, failure.KIND_NAN_LOGITS)]
    assert kinds[4:] == [[(1, failure.KIND_INTERNAL)]] * 3


def test_the_worker_delivers_results_when_no_step_follows(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(runner)
    worker = Worker(ShardConfig(model_path=Path("none"), socket=""), None)
    worker._runner, worker._overlapped = runner, OverlappedSteps(runner)
    monkeypatch.setattr(worker, "_load", lambda: None)
    results: queue.SimpleQueue[pb.StepResult] = queue.SimpleQueue()
    ahead = Ahead(runner)
    monkeypatch.setattr(ahead.steps, "submit", lambda step, _done: worker.run(step, results.put))
    ahead.send([], {0: sampling()})
    ahead.send([0])
    ahead.send([0])
    worker.start()
    tokens = [results.get(timeout=60).token_ids[0] for _ in range(3)]
    # Other tasks of the thread run after earlier steps.
    ahead.send([0])
    assert worker.call(lambda _runner: results.qsize()).result(60) == 1
    worker.reset().result(60)
    assert [*tokens, results.get().token_ids[0]] == expected[0][:4]
    gc.unfreeze()  # the worker has exempted all objects from garbage collection
