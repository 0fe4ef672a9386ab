"""Greedy tokens equal those of Transformers' `generate()` in float32, for any chunking, preemption or failure."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support.client import Answer
from support.models import CONTEXT_TOKENS, FAMILIES, SPLITTABLE, cache_bytes_per_token
from support.paths import LONG
from support.reference import Case, cases
from support.server import Server, wait_for
from tokenizers import Tokenizer

TinyModels = Callable[[str], Path]

#: SmolLM2 is two thousand times larger than the tiny models: it gets fewer and, with a few exceptions, shorter prompts.
SMOLLM2_CASES = 64 if LONG else 24
SMOLLM2_LONGEST_ANSWER = 24


def smollm2_cases(folder: Path) -> list[Case]:
    return cases(folder, number=SMOLLM2_CASES, longest_answer=SMOLLM2_LONGEST_ANSWER)


def ask(server: Server, case: Case, streamed: bool = False) -> Answer:
    call = server.client.generate_stream if streamed else server.client.generate
    return call(case.prompt, max_new_tokens=case.max_new_tokens)


def check(answers: Sequence[Answer], expected: Sequence[Case], folder: Path) -> None:
    """Checks all tokens, and that the text is their decoding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    wrong = []
    for index, (answer, case) in enumerate(zip(answers, expected, strict=True)):
        if answer.token_ids != list(case.token_ids):
            same = next(
                (i for i, (a, b) in enumerate(zip(answer.token_ids, case.token_ids, strict=False)) if a != b),
                min(len(answer.token_ids), len(case.token_ids)),
            )
            wrong.append(
                f"case {index}: prompt of {case.num_prompt_tokens} tokens, equal up to token {same} of "
                f"{len(case.token_ids)}; got {answer.token_ids[same : same + 4]}, "
                f"expected {list(case.token_ids[same : same + 4])}"
            )
    assert not wrong, f"{len(wrong)} of {len(expected)} differ:\n" + "\n".join(wrong[:12])
    for answer, case in zip(answers, expected, strict=True):
        assert answer.text == tokenizer.decode(list(case.token_ids), skip_special_tokens=True)


def ask_together(server: Server, expected: Sequence[Case]) -> list[Answer]:
    """Sends all at once, every second one as a stream."""
    return server.client.together(
        [lambda case=case, i=i: ask(server, case, streamed=i % 2 == 0) for i, case in enumerate(expected)]
    )


def check_through_the_death_of_a_shard(server: Server, expected: list[Case], folder: Path) -> None:
    """Kills a shard with SIGKILL while answers are generated; all of them must still be right."""
    restarts = server.client.metric("gridwork_shard_restarts_total")
    victims = server.shards()
    answers: list[Answer] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            answers.extend(ask_together(server, expected))
        except BaseException as error:
            failures.append(error)

    before = server.client.metric("gridwork_generated_tokens_total")
    asking = threading.Thread(target=run)
    asking.start()
    goal = sum(len(case.token_ids) for case in expected) // 4
    wait_for(
        lambda: not asking.is_alive() or server.client.metric("gridwork_generated_tokens_total") - before >= goal,
        60,
        "a quarter of the tokens",
        every_s=0.005,
    )
    assert asking.is_alive(), "all was answered before the shard could be killed"
    victims[-1].kill()
    asking.join(timeout=240)
    assert not failures, f"{failures[0]!r}\n{server.log_tail()}"
    check(answers, expected, folder)
    assert server.client.metric("gridwork_shard_restarts_total") > restarts
    assert {shard.pid for shard in server.shards()}.isdisjoint({victims[-1].pid})


def check_in_chunks_of_16_tokens(folder: Path, expected: list[Case]) -> None:
    with Server("--model-id", folder, "--dtype", "float32", "--max-batch-prefill-tokens", 16) as server:
        check(ask_together(server, expected), expected, folder)
        longest = max(case.num_prompt_tokens for case in expected)
        assert server.client.metric("gridwork_steps_total") > longest / 16
        check_idle(server)


def check_with_preemptions(folder: Path, expected: list[Case]) -> None:
    """Runs with a cache of 704 tokens, which six answers of 150 tokens at once outgrow."""
    with Server(
        *("--model-id", folder, "--dtype", "float32", "--max-total-tokens", 640),
        *("--kv-cache-memory", 704 * cache_bytes_per_token(folder)),
    ) as server:
        long = [lambda: server.client.generate("A", max_new_tokens=150, ignore_eos=True)] * 6
        short = [lambda case=case: ask(server, case) for case in expected]
        answers = server.client.together(long + short)
        assert [len(answer.token_ids) for answer in answers[: len(long)]] == [150] * len(long)
        check(answers[len(long) :], expected, folder)
        assert server.client.metric("gridwork_preemptions_total") > 0
        check_idle(server)


def check_idle(server: Server) -> None:
    wait_for(lambda: server.client.metric("gridwork_cache_blocks_used") == 0, 5, "no block is in use when idle")
    assert server.client.metric("gridwork_scheduler_integrity_violations_total") == 0


# --- SmolLM2 ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2_server(smollm2: Path) -> Iterator[Server]:
    with Server("--model-id", smollm2, "--dtype", "float32") as server:
        yield server


def test_smollm2_alone(smollm2_server: Server, smollm2: Path) -> None:
    expected = sorted(smollm2_cases(smollm2), key=lambda case: case.num_prompt_tokens)[:: SMOLLM2_CASES // 4]
    check([ask(smollm2_server, case) for case in expected], expected, smollm2)


def test_smollm2_many_at_once(smollm2_server: Server, smollm2: Path) -> None:
    expected = smollm2_cases(smollm2)
    check(ask_together(smollm2_server, expected), expected, smollm2)
    check_idle(smollm2_server)


def test_smollm2_survives_a_killed_shard(smollm2_server: Server, smollm2: Path) -> None:
    check_through_the_death_of_a_shard(smollm2_server, smollm2_cases(smollm2)[:16], smollm2)
    check_idle(smollm2_server)


def test_smollm2_in_chunks_of_16_tokens(smollm2: Path) -> None:
    check_in_chunks_of_16_tokens(smollm2, smollm2_cases(smollm2))


def test_smollm2_with_preemptions(smollm2: Path) -> None:
    check_with_preemptions(smollm2, smollm2_cases(smollm2))


def test_smollm2_over_two_shards_survives_a_killed_one(smollm2: Path) -> None:
    """SmolLM2's three key-value heads do not divide by two; the answers must be right all the same."""
    with Server("--model-id", smollm2, "--dtype", "float32", "--num-shard", 2) as server:
        assert len(server.shards()) == 2
        expected = smollm2_cases(smollm2)[:12]
        check(ask_together(server, expected), expected, smollm2)
        check_through_the_death_of_a_shard(server, expected, smollm2)
        check_idle(server)


# --- small random models of every family ------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_then_64_at_once_then_with_a_killed_shard(family: str, tiny: TinyModels) -> None:
    folder = tiny(family)
    with Server("--model-id", folder, "--dtype", "float32") as server:
        expected = cases(folder)
        alone = sorted(expected, key=lambda case: case.num_prompt_tokens)[::9]
        check([ask(server, case) for case in alone], alone, folder)
        check(ask_together(server, expected), expected, folder)
        check_idle(server)
        check_through_the_death_of_a_shard(server, expected, folder)
        check_idle(server)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_chunks_of_16_tokens(family: str, tiny: TinyModels) -> None:
    check_in_chunks_of_16_tokens(tiny(family), cases(tiny(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_preemptions(family: str, tiny: TinyModels) -> None:
    check_with_preemptions(tiny(family), cases(tiny(family)))


@pytest.mark.parametrize("family", SPLITTABLE)
def test_over_two_shards(family: str, tiny: TinyModels) -> None:
    folder = tiny(family)
    with Server("--model-id", folder, "--dtype", "float32", "--num-shard", 2) as server:
        assert len(server.shards()) == 2
        expected = cases(folder)
        check(ask_together(server, expected), expected, folder)
        check_idle(server)


def test_two_shards_survive_killing_either(tiny: TinyModels) -> None:
    folder = tiny("llama")
    with Server("--model-id", folder, "--dtype", "float32", "--num-shard", 2) as server:
        check_through_the_death_of_a_shard(server, cases(folder), folder)
        check_idle(server)


def test_arriving_and_leaving_requests_do_not_affect_others(tiny: TinyModels) -> None:
    """Requests arrive one after another; a third of the clients leave after a few tokens."""
    folder = tiny("llama")
    expected = cases(folder)
    order = random.Random(7)

    def visit(server: Server, case: Case, leave: bool, delay_s: float) -> Answer | None:
        time.sleep(delay_s)
        if not leave:
            return ask(server, case, streamed=True)
        body = {"inputs": case.prompt, "parameters": {"max_new_tokens": 300}}
        for index, _ in enumerate(server.client.stream("/generate_stream", body)):
            if index == 2:
                return None
        return None

    with Server(
        *("--model-id", folder, "--dtype", "float32", "--max-batch-prefill-tokens", 48),
        *("--max-total-tokens", 1000, "--kv-cache-memory", (CONTEXT_TOKENS + 512) * cache_bytes_per_token(folder)),
    ) as server:
        visits = [(case, index % 3 == 0, order.random()) for index, case in enumerate(expected)]
        answers = server.client.together([lambda visit_=visit_: visit(server, *visit_) for visit_ in visits])
        stayed = [(answer, case) for answer, case in zip(answers, expected, strict=True) if answer is not None]
        assert len(stayed) == len([leave for _, leave, _ in visits if not leave])
        check([answer for answer, _ in stayed], [case for _, case in stayed], folder)
        check_idle(server)
