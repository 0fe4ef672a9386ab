"""Steps with drafts give the same tokens and log-probabilities as steps without, whatever the guesses."""

import functools
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_kernels.attention_choice import EVERYWHERE
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.errors import LimitError
from gridwork_server.sampling import taken

from .. import models
from ..driver import Driver, Sequence, sampling
from ..runners import SizedRunner, driver_for, load_runner

MOST = 5
LIMITS = pb.WarmupRequest(
    block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=100, max_drafts=MOST
)
PROMPTS = models.prompts([23, 1, 12, 5])
COUNT = 25

Draft = Callable[[Sequence], list[int]]


@pytest.fixture(scope="module")
def runner_for(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Function from an architecture's name and an attention to a runner that has been warmed up."""
    folders = functools.cache(lambda name: models.save(name, tmp_path_factory.mktemp("models") / name))

    @functools.cache
    def make(name: str, attention: str = "auto", prefix_cache: bool = False) -> SizedRunner:
        if attention == "cpu" and not cpu_attention.supports(torch.float32):
            pytest.skip("no compiled kernels for this CPU")
        limits = pb.WarmupRequest()
        limits.CopyFrom(LIMITS)
        limits.prefix_cache = prefix_cache
        return load_runner(folders(name), limits, attention=attention)

    return make


def oracle(answers: dict[int, list[int]], wrong: float = 0, seed: int = 0) -> Draft:
    """Makes drafts from the known answers. wrong: probability of spoiling each token."""
    choice = random.Random(seed)

    def draft(sequence: Sequence) -> list[int]:
        right = answers[sequence.name][len(sequence.generated) :][: choice.randint(0, MOST) if wrong else MOST]
        return [choice.randrange(models.VOCAB) if choice.random() < wrong else token for token in right]

    return draft


def generate(runner: SizedRunner, requests: list[dict[str, Any]], draft: Draft = lambda _: [], **more: Any) -> Driver:
    """Runs requests together."""
    driver = driver_for(runner, draft=draft, **more)
    for request in requests:
        driver.add(wanted=COUNT, **request)
    driver.finish()
    return driver


def answers_of(driver: Driver) -> dict[int, list[int]]:
    return {name: sequence.generated for name, sequence in driver.finished.items()}


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("attention", ["cpu", *EVERYWHERE])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma3", "qwen3_moe", "deepseek_v2"])
def test_greedy_tokens_are_the_same_whatever_is_drafted(
    name: str, attention: str, prefix_cache: bool, runner_for: Any
) -> None:
    runner = runner_for(name, attention, prefix_cache)
    requests = [{"prompt": prompt} for prompt in PROMPTS]
    plain = generate(runner, requests)
    expected = answers_of(plain)
    right = generate(runner, requests, oracle(expected))
    assert answers_of(right) == expected
    # One prefill and its token, then MOST drafts and a token a step.
    assert len(right.results) == 1 + -(-(COUNT - 1) // (MOST + 1)) < len(plain.results)
    for wrong in (0.3, 1):
        assert answers_of(generate(runner, requests, oracle(expected, wrong), chunk=7)) == expected


def test_drafts_of_a_preempted_sequence_leave_nothing_behind(runner_for: Any) -> None:
    runner = runner_for("gemma3")
    expected = answers_of(generate(runner, [{"prompt": prompt} for prompt in PROMPTS]))
    driver = driver_for(runner, draft=oracle(expected, 0.3))
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS]
    for victim in (0, 3, 2, 1):
        driver.step()
        driver.step()
        if any(sequence.name == names[victim] for sequence in driver.running):
            driver.preempt(names[victim])
    assert driver.finish() == expected
    runner.run(pb.Step(id=99, released=range(LIMITS.max_sequences)))
    blocks = runner.path._window_blocks
    assert (blocks.tables == blocks.null_block).all()


def reports(driver: Driver) -> dict[int, list[tuple[int, float, list[int], list[float]]]]:
    """By sequence: each token with its log-probability, the most likely tokens and theirs."""
    found = defaultdict(list)
    for result in driver.results:
        top = np.cumsum([0, *result.num_top])
        for i, (row, token) in enumerate(zip(result.sequence_ids, result.token_ids, strict=True)):
            span = slice(top[i], top[i + 1])
            entry = (token, result.logprobs[i], list(result.top_token_ids[span]), list(result.top_logprobs[span]))
            found[row].append(entry)
    return found


def test_seeded_tokens_and_log_probabilities_are_the_same_whatever_is_drafted(runner_for: Any) -> None:
    runner = runner_for("llama")
    settings = [
        {"seed": 1, "temperature": 0.7},
        {"seed": 2, "temperature": 1.3, "top_k": 20},
        {"seed": 3, "top_p": 0.8, "min_p": 0.05},
        {"seed": 4, "typical_p": 0.7, "logit_bias_tokens": [7, 9], "logit_bias_values": [3, -3]},
        {},
    ]
    requests: list[dict[str, Any]] = [
        {"prompt": PROMPTS[2], "settings": sampling(**one), "top_n": i} for i, one in enumerate(settings, 1)
    ]
    plain = generate(runner, requests)
    expected = answers_of(plain)
    assert len({tuple(answer) for answer in expected.values()}) == len(settings)
    for wrong in (0, 0.4):
        drafted = generate(runner, requests, oracle(expected, wrong))
        assert answers_of(drafted) == expected
        assert len(drafted.results) < len(plain.results)
        ours, theirs = reports(drafted), reports(plain)
        for row, entries in theirs.items():
            assert len(ours[row]) == COUNT
            for (token, logprob, ids, logprobs), (token_, logprob_, ids_, logprobs_) in zip(
                ours[row], entries, strict=True
            ):
                assert (token, ids) == (token_, ids_)
                assert logprob == pytest.approx(logprob_, abs=1e-4)
                assert logprobs == pytest.approx(logprobs_, abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"seed": 3, "temperature": 1.2}], ids=["greedy", "sampled"])
def test_end_tokens_are_forbidden_up_to_the_shortest_length_whatever_is_drafted(
    settings: dict[str, Any], runner_for: Any
) -> None:
    runner = runner_for("llama")
    prompt = PROMPTS[2]
    free = answers_of(generate(runner, [{"prompt": prompt, "settings": sampling(**settings)}]))[0]
    # Each token of the free answer ends the text, so that the answer is another one up to the shortest length.
    ends, shortest = sorted(set(free)), 11
    forbidding = sampling(first_end_position=len(prompt) + shortest, end_token_ids=ends, **settings)
    requests: list[dict[str, Any]] = [{"prompt": prompt, "settings": forbidding, "top_n": 1}]
    plain = generate(runner, requests)
    expected = answers_of(plain)
    assert not set(ends) & set(expected[0][:shortest])
    for wrong in (0, 0.4):
        drafted = generate(runner, requests, oracle(expected, wrong))
        assert answers_of(drafted) == expected
        assert len(drafted.results) < len(plain.results)
    # A draft of an end token is not taken.
    spoiled = generate(runner, requests, lambda _: ends[:MOST])
    assert answers_of(spoiled) == expected
    # After a preemption, the generated tokens come back with the prompt.
    driver = driver_for(runner, draft=oracle(expected, 0.2))
    name = driver.add(prompt, COUNT, settings=forbidding)
    for _ in range(3):
        driver.step()
    driver.preempt(name)
    assert driver.finish()[name] == expected[0]


def test_sequences_with_penalties_run_beside_drafts_of_others(runner_for: Any) -> None:
    runner = runner_for("llama")
    requests: list[dict[str, Any]] = [
        {"prompt": PROMPTS[0]},
        {"prompt": PROMPTS[0], "settings": sampling(repetition_penalty=1.5, frequency_penalty=0.5)},
        {"prompt": PROMPTS[2], "settings": sampling(seed=5, presence_penalty=1.0)},
    ]
    expected = answers_of(generate(runner, requests))
    draft = oracle(expected, 0.2)
    drafted = generate(runner, requests, lambda sequence: draft(sequence) if sequence.name == 0 else [])
    assert answers_of(drafted) == expected


def poisoned(runner: SizedRunner, token: int) -> Any:
    """Makes logits after this token NaN. Returns the embedding, and the token's row before."""
    weight = runner.loaded.model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    before = weight[token].clone()
    weight[token] = float("nan")
    return weight, before


@torch.inference_mode()
def test_nan_logits_after_a_draft_that_is_not_taken_fail_no_sequence(runner_for: Any) -> None:
    runner = runner_for("llama", "cpu")
    requests = [{"prompt": prompt} for prompt in PROMPTS]
    expected = answers_of(generate(runner, requests))
    used = {token for tokens in [*PROMPTS, *expected.values()] for token in tokens}
    poison = next(token for token in range(models.VOCAB) if token not in used)
    weight, before = poisoned(runner, poison)
    right = oracle(expected)
    driver = generate(runner, requests, lambda sequence: [*right(sequence)[: sequence.name], poison, poison])
    weight[poison] = before
    assert not driver.failures
    assert answers_of(driver) == expected


@torch.inference_mode()
def test_nan_logits_after_a_taken_draft_fail_the_sequence_after_that_token(runner_for: Any) -> None:
    runner = runner_for("llama", "cpu")
    requests = [{"prompt": PROMPTS[2]}, {"prompt": PROMPTS[0]}]
    expected = answers_of(generate(runner, requests))
    poison = next(token for token in expected[0][3:] if token not in {*PROMPTS[0], *PROMPTS[2], *expected[1]})
    weight, before = poisoned(runner, poison)
    driver = generate(runner, requests, oracle(expected))
    weight[poison] = before
    assert [failure.kind for failure in driver.failures.values()] == [pb.SequenceFailure.KIND_NAN_LOGITS]
    assert list(driver.failures) == [0]
    assert answers_of(driver) == {0: expected[0][: expected[0].index(poison) + 1], 1: expected[1]}


def test_the_taken_tokens_are_those_of_the_definition() -> None:
    choice = np.random.default_rng(3)
    for _ in range(300):
        counts = choice.integers(1, 6, size=choice.integers(1, 6))
        tokens, inputs = choice.integers(0, 2, size=(2, counts.sum()))
        failed = choice.random(counts.sum()) < 0.1
        expected = []
        for first, count in zip(np.cumsum(counts) - counts, counts, strict=True):
            goes_on = True
            for i in range(first, first + count):
                goes_on = goes_on and (i == first or tokens[i - 1] == inputs[i]) and not failed[i]
                expected.append(goes_on)
        assert taken(tokens, failed, inputs, counts).tolist() == expected


def test_a_path_that_takes_no_drafts_refuses_them(tmp_path: Path) -> None:
    folder = models.save("llama", tmp_path / "llama")
    for impl in ("batched", "solo"):
        runner = load_runner(folder, model_impl=impl)
        assert runner.draft_step_tokens == 0
        with pytest.raises(LimitError, match=f"the {impl} path .* no drafts"):
            runner.warm_up(LIMITS)
    assert load_runner(folder).draft_step_tokens > 0
