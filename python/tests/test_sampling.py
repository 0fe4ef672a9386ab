"""Sampling parameters, and the requests that they become."""

import pytest

from gridwork import InvalidRequest, SamplingParams
from gridwork.prompts import Prompt
from gridwork.requests import chat_body, completion_body


def test_what_is_off_is_left_out_and_what_a_model_may_have_a_default_for_is_sent() -> None:
    body = SamplingParams().body()
    assert body == {
        "max_tokens": 16,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
    }


def test_parameters_that_are_given_are_sent_under_the_names_of_the_api() -> None:
    params = SamplingParams(
        n=2,
        seed=0,
        stop=["a"],
        logprobs=0,
        logit_bias={5: -100.0},
        ignore_eos=True,
        max_tokens=None,
        extra_args={"cache_salt": "x"},
    )
    body = completion_body(Prompt("p", None), params, stream=False)
    given = {"n": 2, "seed": 0, "stop": ["a"], "logprobs": 0, "logit_bias": {"5": -100.0}, "ignore_eos": True}
    assert {name: body[name] for name in given} == given
    assert body["cache_salt"] == "x" and body["prompt"] == "p" and body["return_token_ids"] is True
    assert "max_tokens" not in body


def test_a_chat_asks_for_log_probabilities_in_its_own_form() -> None:
    body = chat_body([{"role": "user", "content": "a"}], SamplingParams(logprobs=3), True, {"tools": None, "x": 1})
    assert body["logprobs"] is True and body["top_logprobs"] == 3
    assert body["stream"] is True and "tools" not in body and body["x"] == 1


def test_the_models_own_defaults_are_left_alone_without_parameters() -> None:
    assert completion_body(Prompt(None, [1, 2]), None, stream=False) == {"return_token_ids": True, "prompt": [1, 2]}


def test_dictionaries_are_read_with_names_of_other_libraries() -> None:
    params = SamplingParams.of({"temperature": 0, "max_new_tokens": 5})
    assert params == SamplingParams(temperature=0, max_tokens=5)
    assert SamplingParams.of(None) is None


@pytest.mark.parametrize(("value", "field"), [({"temprature": 1}, "temprature"), (5, "sampling_params")])
def test_unknown_parameters_are_refused_by_name(value: object, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field) as refused:
        SamplingParams.of(value)  # type: ignore[arg-type]
    assert refused.value.field == field
