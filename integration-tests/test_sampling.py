"""Sampled answers: seeds are reproducible, and every parameter has its effect."""

import math
from functools import partial
from typing import Any

import pytest
from support.client import Answer
from support.server import Server

PROMPT = "The harbour wakes before the town does."


def test_a_seed_gives_the_same_tokens_alone_and_among_63_others(tiny_server: Server) -> None:
    client = tiny_server.client
    sampling = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 100, "max_new_tokens": 48}

    def ask(prompt: str, seed: int) -> Answer:
        return client.generate(prompt, seed=seed, **sampling)

    alone = ask(PROMPT, 1234)
    assert alone.details["seed"] == 1234
    asked = [(f"{i} boats left. {PROMPT * (1 + i % 5)}", i) for i in range(63)]
    asked.insert(40, (PROMPT, 1234))
    among = client.together([partial(ask, *one) for one in asked])[40]
    assert among.token_ids == alone.token_ids


def test_the_same_seed_gives_the_same_text_from_the_default_model(smollm2_server: Server) -> None:
    client = smollm2_server.client
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "seed": 7, "max_tokens": 24}
    say = lambda: client.ok("/v1/chat/completions", body)["choices"][0]["message"]["content"]  # noqa: E731
    alone = say()
    assert set(client.together([say] * 8)) == {alone}


def test_different_seeds_differ(tiny_server: Server) -> None:
    answers = [
        tuple(tiny_server.client.generate(PROMPT, do_sample=True, seed=seed, max_new_tokens=24).token_ids)
        for seed in range(8)
    ]
    assert len(set(answers)) == 8


def test_no_seed_differs_from_call_to_call(tiny_server: Server) -> None:
    answers = [tiny_server.client.generate(PROMPT, do_sample=True, max_new_tokens=24) for _ in range(4)]
    assert len({tuple(answer.token_ids) for answer in answers}) == 4
    assert all(isinstance(answer.details["seed"], int) for answer in answers)


def test_top_k_of_one_is_greedy(tiny_server: Server) -> None:
    greedy = tiny_server.client.generate(PROMPT, max_new_tokens=24)
    for narrow in ({"top_k": 1}, {"top_p": 0.0001}, {"temperature": 0.0001}):
        sampled = tiny_server.client.generate(PROMPT, max_new_tokens=24, do_sample=True, seed=5, **narrow)
        assert sampled.token_ids == greedy.token_ids, narrow


def test_min_p_of_one_keeps_only_the_most_likely(tiny_server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 1.0, "seed": 3}
    client = tiny_server.client
    greedy = client.ok("/v1/completions", body | {"temperature": 0})["choices"][0]["text"]
    assert client.ok("/v1/completions", body | {"min_p": 1.0})["choices"][0]["text"] == greedy
    assert client.ok("/v1/completions", body)["choices"][0]["text"] != greedy


def test_typical_p_changes_what_is_sampled(tiny_server: Server) -> None:
    plain = tiny_server.client.generate(PROMPT, max_new_tokens=32, do_sample=True, seed=11)
    typical = tiny_server.client.generate(PROMPT, max_new_tokens=32, do_sample=True, seed=11, typical_p=0.2)
    assert plain.token_ids != typical.token_ids


def test_logit_bias_forces_and_forbids_a_token(smollm2_server: Server) -> None:
    client = smollm2_server.client
    forced = client.ok("/tokenize", {"inputs": " banana"})[0]
    body = {"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}
    text = client.ok("/v1/completions", body | {"logit_bias": {str(forced["id"]): 100}})["choices"][0]["text"]
    assert text == " banana" * 3
    paris = client.ok("/tokenize", {"inputs": " Paris"})[0]
    text = client.ok("/v1/completions", body | {"logit_bias": {str(paris["id"]): -100}})["choices"][0]["text"]
    assert "Paris" not in text


@pytest.mark.parametrize(
    "penalty", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 1.8}]
)
def test_a_penalty_makes_repetition_rarer(smollm2_server: Server, penalty: dict[str, float]) -> None:
    client = smollm2_server.client
    body = {"prompt": "na na na na na na na na na na na na", "max_tokens": 40, "temperature": 0}
    plain = client.ok("/v1/completions", body)["choices"][0]["text"]
    penalised = client.ok("/v1/completions", body | penalty)["choices"][0]["text"]
    assert penalised.split().count("na") < plain.split().count("na")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "generation_config", "/generate"])
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_no_end_comes_before_the_minimum_of_tokens(smollm2_server: Server, path: str, sampled: bool) -> None:
    client = smollm2_server.client
    (eos,) = client.get("/info").json()["eos_token_ids"][:1]
    banana = client.ok("/tokenize", {"inputs": " banana"})[0]["id"]

    def ask(minimum: int, token: int, **more: Any) -> tuple[int, str, str]:
        """Number of tokens, text, and reason of the end of an answer that gives the token wherever it may."""
        more |= {"logit_bias": {str(token): 100}} | ({"seed": 1} if sampled else {})
        if path == "/generate":
            answer = client.generate("hi", max_new_tokens=9, min_new_tokens=minimum, do_sample=sampled, **more)
            reason = "length" if answer.finish_reason == "length" else "stop"
            return answer.details["generated_tokens"], answer.text, reason
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        body = {"max_tokens": 9, "temperature": 1.0 if sampled else 0} | more
        if path == "/v1/completions":
            body |= {"prompt": "hi", "min_tokens": minimum}
        elif path == "generation_config":
            body |= chat | {"generation_config": {"min_new_tokens": minimum, "do_sample": sampled}}
        else:
            body |= chat | {"min_tokens": minimum}
        answer = client.ok(path if path.startswith("/") else "/v1/chat/completions", body)
        (choice,) = answer["choices"]
        text = choice["text"] if path == "/v1/completions" else choice["message"]["content"]
        return answer["usage"]["completion_tokens"], text, choice["finish_reason"]

    for token, more in ((eos, {}), (banana, {"stop_token_ids": [banana]})):
        assert ask(0, token, **more)[::2] == (1, "stop")
        # The token that ends the text comes after the minimum.
        assert ask(5, token, **more)[::2] == (6, "stop")
        assert ask(9, token, **more)[::2] == (9, "length")
    if path != "generation_config":
        assert ask(5, eos, ignore_eos=True)[::2] == (9, "length")
    for minimum in (0, 1, 4):
        count = max(minimum, 1)
        end = " banana" if path == "/generate" else ""
        assert ask(minimum, banana, stop=[" banana"]) == (count, " banana" * (count - 1) + end, "stop")


def test_logprobs_match_the_greedy_choice(tiny_server: Server) -> None:
    """The greedy token is the most likely one, and top tokens are sorted by probability."""
    answer = tiny_server.client.generate(PROMPT, max_new_tokens=12, top_n_tokens=4)
    assert len(answer.details["top_tokens"]) == len(answer.token_ids)
    for token, top in zip(answer.details["tokens"], answer.details["top_tokens"], strict=True):
        logprobs = [entry["logprob"] for entry in top]
        assert len(top) == 4
        assert logprobs == sorted(logprobs, reverse=True)
        assert top[0]["id"] == token["id"]
        assert top[0]["logprob"] == pytest.approx(token["logprob"], abs=1e-4)
        assert sum(math.exp(logprob) for logprob in logprobs) <= 1.0 + 1e-4


def test_logprobs_do_not_depend_on_the_temperature(tiny_server: Server) -> None:
    greedy = tiny_server.client.generate(PROMPT, max_new_tokens=8)
    sampled = tiny_server.client.generate(PROMPT, max_new_tokens=8, do_sample=True, top_k=1, temperature=3.0, seed=1)
    assert sampled.token_ids == greedy.token_ids
    for one, other in zip(greedy.details["tokens"], sampled.details["tokens"], strict=True):
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)


def test_prompt_logprobs_are_given_with_decoder_input_details(tiny_server: Server) -> None:
    answer = tiny_server.client.generate(PROMPT, max_new_tokens=4, decoder_input_details=True)
    prefill = answer.details["prefill"]
    ids = [token["id"] for token in tiny_server.client.ok("/tokenize", {"inputs": PROMPT})]
    assert [token["id"] for token in prefill] == ids
    assert prefill[0]["logprob"] is None
    assert all(token["logprob"] <= 0 for token in prefill[1:])


def test_chat_logprobs_have_the_shape_that_openai_clients_read(smollm2_server: Server) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    choice = smollm2_server.client.ok("/v1/chat/completions", body)["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content).startswith("The capital of France is Paris.")
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in content)


def test_best_of_gives_the_likeliest_of_several(tiny_server: Server) -> None:
    answer = tiny_server.client.generate(PROMPT, max_new_tokens=8, do_sample=True, best_of=2)
    others = answer.details["best_of_sequences"]
    assert len(others) == 1

    def mean(tokens: list[dict[str, float]]) -> float:
        return sum(token["logprob"] for token in tokens) / len(tokens)

    assert mean(answer.details["tokens"]) >= mean(others[0]["tokens"])
