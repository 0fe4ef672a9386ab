"""Steps with grammars: every text follows its grammar, and is the same however the steps are made."""

import re
from pathlib import Path
from typing import Any

import pytest

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.sampling import neutral_parameters
from gridwork_server.step.overlapped import OverlappedSteps

from .. import models
from ..driver import Driver, sampling
from ..grammars import END, TEXTS, grammar, text, token_table
from ..runners import SizedRunner, driver_for, load_runner

LIMITS = pb.WarmupRequest(
    block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=100, max_drafts=5, tokens=token_table()
)
PROMPTS = models.prompts([23, 1, 12, 5])
RULES = [
    'start: "id" ": " /[0-9]{3,6}/ ";"',
    "start: /[a-e]{4,12}x/",
    'start: ("yes" | "no") (" " ("yes" | "no")){1,4}',
]
PATTERNS = ["id: [0-9]{3,6};", "[a-e]{4,12}x", "(yes|no)( (yes|no)){1,4}"]
COUNT = 30


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> SizedRunner:
    return load_runner(models.save("llama", tmp_path_factory.mktemp("models") / "llama"), LIMITS)


def requests() -> list[dict[str, Any]]:
    """Three sequences with a grammar, greedy and random, and a free one."""
    with_grammar = [
        {"prompt": prompt, "settings": sampling(seed=seed, temperature=1.3), "grammar": grammar(rules)}
        for seed, (prompt, rules) in enumerate(zip(PROMPTS, RULES, strict=False))
    ]
    return [*with_grammar, {"prompt": PROMPTS[3], "settings": sampling(seed=9)}]


def answers(driver: Driver) -> dict[int, list[int]]:
    for each in requests():
        driver.add(wanted=COUNT, **each)
    return driver.finish()


def without_end(tokens: list[int]) -> list[int]:
    return tokens[:-1] if tokens[-1] == END else tokens


def check(found: dict[int, list[int]]) -> None:
    for name, pattern in enumerate(PATTERNS):
        assert re.fullmatch(pattern, text(without_end(found[name]))), text(found[name])


def test_texts_follow_their_grammars_beside_a_free_one(runner: SizedRunner) -> None:
    found = answers(driver_for(runner))
    check(found)
    alone = driver_for(runner)
    free = alone.add(wanted=COUNT, **requests()[3])
    assert alone.finish()[free] == found[3]


def test_the_end_of_a_grammar_is_reported_with_its_last_token(runner: SizedRunner) -> None:
    driver = driver_for(runner)
    driver.add(PROMPTS[0], COUNT, grammar=grammar('start: "abc"'))
    found = driver.finish()[0]
    assert text(found) == "abc"
    assert END not in found
    assert list(driver.results[-1].ended) == [driver.finished[0].id]


@pytest.mark.parametrize("wrong", [False, True])
def test_drafts_change_no_text(runner: SizedRunner, wrong: bool) -> None:
    expected = answers(driver_for(runner))

    def draft(sequence: Any) -> list[int]:
        known = expected[sequence.name][len(sequence.generated) :][:5]
        return [3 + (token * 7) % 90 if wrong and at % 2 else token for at, token in enumerate(known)]

    driver = driver_for(runner, draft=draft)
    assert answers(driver) == expected
    if not wrong:
        assert len(driver.results) < max(map(len, expected.values()))


def test_forced_tokens_are_good_drafts(runner: SizedRunner) -> None:
    rules = {"grammar": grammar('start: "(((" /[0-9]/ ")))]]]"')}
    plain = driver_for(runner)
    plain.add(PROMPTS[0], COUNT, **rules)
    expected = plain.finish()
    jumping = driver_for(runner, draft=lambda sequence: sequence.forced[:5])
    jumping.add(PROMPTS[0], COUNT, **rules)
    assert jumping.finish() == expected
    assert len(jumping.results) < len(plain.results)


def test_preemption_rebuilds_the_state(runner: SizedRunner) -> None:
    expected = answers(driver_for(runner))
    driver = driver_for(runner)
    for each in requests():
        driver.add(wanted=COUNT, **each)
    for victim in (0, 2, 1, 0):
        driver.step()
        driver.step()
        if any(sequence.name == victim for sequence in driver.running):
            driver.preempt(victim)
    assert driver.finish() == expected


class Ahead:
    """A router that sends each step before it has the result of the step before."""

    def __init__(self, runner: SizedRunner) -> None:
        self.steps = OverlappedSteps(runner)
        self.results: list[pb.StepResult] = []
        self.sent = 0

    def send(self, step: pb.Step) -> None:
        self.sent += 1
        step.id = self.sent
        self.steps.submit(step, self.results.append)

    def admit(self, id: int, prompt: list[int], settings: pb.SamplingParameters, rules: str, **more: Any) -> None:
        blocks = range(id * 14, id * 14 + 14)
        step = pb.Step(
            sequence_ids=[id], num_tokens=[len(prompt)], num_new_blocks=[len(blocks)], new_blocks=blocks, **more
        )
        step.admitted.add(
            id=id, token_ids=prompt, num_prompt_tokens=len(prompt), sampling=settings, grammar=rules and grammar(rules)
        )
        self.send(step)

    def decode(self, ids: list[int]) -> None:
        self.send(pb.Step(sequence_ids=ids, num_tokens=[1] * len(ids), num_new_blocks=[0] * len(ids)))

    def tokens(self, id: int) -> list[int]:
        self.steps.flush()
        pairs = (zip(result.sequence_ids, result.token_ids, strict=True) for result in self.results)
        return [token for each in pairs for of, token in each if of == id]


def test_steps_in_flight_give_the_same_texts(runner: SizedRunner) -> None:
    expected = answers(driver_for(runner))
    runner.reset()
    ahead = Ahead(runner)
    for id, each in enumerate(requests()):
        rules = RULES[id] if id < len(RULES) else ""
        ahead.admit(id, each["prompt"], each["settings"], rules)
    for _ in range(COUNT):
        ahead.decode([0, 1, 2, 3])
        assert len(ahead.results) == ahead.sent - 1
    for id in range(4):
        found = ahead.tokens(id)
        assert found[: len(expected[id])] == expected[id]
        # After the end of its grammar, a sequence that the router has not released yet has nothing but the end.
        if id < 3:
            assert set(found[len(expected[id]) :]) <= {END}
    ended = {id for result in ahead.results for id in result.ended}
    assert ended == {0, 1, 2}


def test_an_id_that_is_given_away_in_flight_follows_the_new_grammar(runner: SizedRunner) -> None:
    runner.reset()
    ahead = Ahead(runner)
    ahead.admit(0, PROMPTS[0], sampling(seed=1), "start: /[0-9]{10}/")
    ahead.decode([0])
    ahead.decode([0])
    ahead.admit(0, PROMPTS[2], sampling(seed=2), "start: /[a-e]{10}/", released=[0])
    for _ in range(3):
        ahead.decode([0])
    ahead.steps.flush()
    numbers, letters = (
        [token for result in ahead.results[of] for token in result.token_ids] for of in (slice(0, 3), slice(3, None))
    )
    assert re.fullmatch("[0-9]{3}", text(numbers))
    assert re.fullmatch("[a-e]{4,8}", text(letters))


def test_a_grammar_that_cannot_be_compiled_fails_its_sequence_alone(runner: SizedRunner) -> None:
    driver = driver_for(runner)
    bad = driver.add(PROMPTS[0], COUNT, grammar=grammar("start: nowhere"))
    good = driver.add(PROMPTS[1], COUNT, grammar=grammar(RULES[1]))
    found = driver.finish()
    assert driver.failures[bad].kind == pb.SequenceFailure.KIND_INTERNAL
    assert "grammar" in driver.failures[bad].message
    assert re.fullmatch(PATTERNS[1], text(without_end(found[good])))


def test_a_grammar_without_tokens_is_refused(tmp_path: Path) -> None:
    limits = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=2, max_total_tokens=60)
    driver = driver_for(load_runner(models.save("llama", tmp_path / "model"), limits))
    name = driver.add(PROMPTS[1], 5, grammar=grammar('start: "a"'))
    driver.finish()
    assert "WarmupRequest.tokens" in driver.failures[name].message


def test_a_minimum_length_ends_with_the_grammar(runner: SizedRunner) -> None:
    settings = neutral_parameters(seed=4, first_end_position=len(PROMPTS[1]) + 20, end_token_ids=[END])
    driver = driver_for(runner)
    driver.add(PROMPTS[1], COUNT, settings, grammar=grammar('start: "ab"{2}'))
    driver.add(PROMPTS[1], COUNT, settings, grammar=grammar("start: /[a-e]*/"))
    found = driver.finish()
    assert text(found[0]) == "abab"
    assert END not in found[1][:19]
    assert {TEXTS[token] for token in found[1][:19]} <= {text for text in TEXTS if re.fullmatch(b"[a-e]+", text)}
