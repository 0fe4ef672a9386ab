"""Forms of prompts, and the jobs that a call becomes."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gridwork import InvalidRequest, SamplingParams, jobs
from gridwork.prompts import Prompt, is_conversation, is_single, read_prompt
from gridwork.seeds import Seeds

WITHOUT_SERVER: Any = SimpleNamespace(seeds=Seeds(None))
"""The part of an engine that making jobs needs."""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", Prompt("a", None)),
        ("", Prompt("", None)),
        ([1, 2], Prompt(None, [1, 2])),
        ((1,), Prompt(None, [1])),
        ({"prompt": "a"}, Prompt("a", None)),
        ({"prompt_token_ids": [1]}, Prompt(None, [1])),
        ({"prompt": "a", "prompt_token_ids": [1]}, Prompt(None, [1])),
    ],
)
def test_prompts_are_texts_tokens_and_dictionaries(given: object, expected: Prompt) -> None:
    assert read_prompt(given) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (5, "type int"),
        (b"a", "type bytes"),
        ([], "no token"),
        ([1, "a"], "'a'"),
        ([-1], "-1"),
        ([True], "True"),
        ([1.5], "1.5"),
        ({}, "neither"),
        ({"prompt": 5}, "neither"),
        ({"prompt": "a", "multi_modal_data": {}}, "multi_modal_data"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_place(given: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=r"prompts\[3\].*" + words.replace("[", r"\[")) as refused:
        read_prompt(given, 3)
    assert refused.value.field == "prompts"


def test_one_is_told_from_several() -> None:
    assert is_single("a") and is_single([1, 2]) and is_single({"prompt": "a"})
    assert not is_single(["a"]) and not is_single([[1]]) and not is_single([])
    assert is_conversation([{"role": "user"}]) and not is_conversation([[{"role": "user"}]])


def counted(prompts: object, params: Any = None) -> int:
    return len(list(jobs.generating(WITHOUT_SERVER, prompts, params, "raise")))


def test_there_is_a_job_for_each_prompt() -> None:
    assert counted("a") == 1 and counted([1, 2]) == 1
    assert counted(["a", [1], {"prompt": "b"}]) == 3
    assert counted(iter("abcd")) == 4
    assert counted(["a", "b"], [SamplingParams(), {"n": 2}]) == 2


@pytest.mark.parametrize(
    ("prompts", "params", "field"),
    [
        ([], None, "prompts"),
        (5, None, "prompts"),
        (["a"], [SamplingParams()] * 2, "sampling_params"),
        (iter(["a"]), [SamplingParams()], "sampling_params"),
        (["a"], "hot", "sampling_params"),
        (["a"], [5], "sampling_params"),
        (["a"], {"tempreature": 1}, "tempreature"),
    ],
)
def test_wrong_arguments_are_refused_by_name(prompts: object, params: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        counted(prompts, params)
    assert refused.value.field == field and field in str(refused.value)


def test_an_iterator_is_read_as_the_jobs_are() -> None:
    read: list[int] = []

    def prompts() -> Iterator[str]:
        for number in range(10):
            read.append(number)
            yield str(number)

    each = iter(jobs.generating(WITHOUT_SERVER, prompts(), None, "raise"))
    next(each)
    assert read == [0]


@pytest.mark.parametrize(
    ("one", "two", "field"), [("a", [], "text_2"), (["a", "b"], ["c"], "text_2"), ([5], ["a"], "text_1")]
)
def test_pairs_that_do_not_match_are_refused(one: Any, two: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        list(jobs.scoring(None, one, two, "raise"))  # type: ignore[arg-type]
    assert refused.value.field == field


def test_options_and_words_that_nobody_knows_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="toools"):
        jobs.check_options({"toools": []})
    with pytest.raises(InvalidRequest, match="ignore"):
        jobs.check_on_error("ignore")


def test_requests_without_a_seed_get_one_each() -> None:
    own = SamplingParams(seed=5)
    requests = [("a", SamplingParams(top_k=3)), ("b", own), ("c", None), ("d", None)]

    def given(seed: int | None) -> list[SamplingParams | None]:
        return [params for _, params in Seeds(seed).given(requests)]

    assert given(None) == [params for _, params in requests]
    first, second, third, fourth = given(7)
    assert first is not None and first.top_k == 3 and first.seed is not None
    assert second is own
    # The model's own defaults stay.
    assert third is not None and fourth is not None and third.body() == {"seed": third.seed}
    assert len({first.seed, third.seed, fourth.seed}) == 3
    assert given(7) == [first, second, third, fourth] != given(8)
    for wrong in ("7", 1.5, True):
        with pytest.raises(InvalidRequest, match="`seed`"):
            Seeds(wrong)
