"""`--speculate` gives the same answers in fewer steps, and is refused where it cannot work."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.client import Answer
from support.models import VOCAB_SIZE, cache_bytes_per_token, tokenizer_file
from support.server import Server, wait_for
from support.text import CORPUS
from test_exactness import check_idle
from test_start import refused
from transformers import GPTJConfig, GPTJForCausalLM

TinyModels = Callable[[str], Path]

REPETITIVE = [
    "red green blue red green blue red green blue red green",
    '{"id": 1, "ok": true}, {"id": 2, "ok": true}, {"id": 3, "ok": true}, {"id": 4,',
    "Say it again and again: the tide comes in, the tide goes out. The tide comes in, the tide goes out. The tide",
]
OTHERS = CORPUS.splitlines()[:3]
GREEDY: dict[str, Any] = {"max_new_tokens": 48, "ignore_eos": True}
SAMPLED = {
    **GREEDY,
    "do_sample": True,
    "seed": 7,
    "temperature": 0.4,
    "top_p": 0.95,
    "top_n_tokens": 2,
}
PENALIZED = {**GREEDY, "repetition_penalty": 1.05}


def requests() -> list[tuple[str, dict[str, Any]]]:
    return [(prompt, asked) for prompt in [*REPETITIVE, *OTHERS] for asked in (GREEDY, SAMPLED)]


@pytest.fixture(scope="module")
def plain(smollm2: Path) -> dict[str, list[Answer]]:
    """Answers of a server without drafts."""
    with Server("--model-id", smollm2, "--dtype", "float32") as server:
        assert server.client.get("/info").json()["speculate"] == 0
        ask = server.client.generate
        calls = [lambda prompt=prompt, asked=asked: ask(prompt, **asked) for prompt, asked in requests()]
        penalized = [lambda prompt=prompt: ask(prompt, **PENALIZED) for prompt in REPETITIVE]
        answers = {"all": server.client.together(calls), "penalized": server.client.together(penalized)}
        assert server.client.metric("gridwork_speculation_drafted_tokens_total") == 0
        return answers


@pytest.fixture(scope="module")
def server(smollm2: Path, plain: dict[str, list[Answer]]) -> Iterator[Server]:
    with Server("--model-id", smollm2, "--dtype", "float32", "--speculate", 4) as running:
        yield running


def check(answers: list[Answer], expected: list[Answer]) -> None:
    """Checks equal tokens, texts and finish reasons; log-probabilities may differ by rounding."""
    for answer, other in zip(answers, expected, strict=True):
        assert (answer.token_ids, answer.text, answer.finish_reason) == (
            other.token_ids,
            other.text,
            other.finish_reason,
        )
        for token, token_ in zip(answer.details["tokens"], other.details["tokens"], strict=True):
            assert math.isclose(token["logprob"], token_["logprob"], abs_tol=1e-3)
        tops, tops_ = answer.details.get("top_tokens"), other.details.get("top_tokens")
        assert (tops is None) == (tops_ is None)
        for top, top_ in zip(tops or [], tops_ or [], strict=True):
            assert [token["id"] for token in top] == [token["id"] for token in top_]


def counts(server: Server) -> tuple[float, float, float]:
    """Drafted tokens, accepted tokens and steps so far."""
    names = ("speculation_drafted_tokens", "speculation_accepted_tokens", "steps")
    drafted, accepted, steps = (server.client.metric(f"gridwork_{name}_total") for name in names)
    return drafted, accepted, steps


def test_answers_alone_are_the_same_in_fewer_steps(server: Server, plain: dict[str, list[Answer]]) -> None:
    assert server.client.get("/info").json()["speculate"] == 4
    before = counts(server)
    check([server.client.generate(prompt, **asked) for prompt, asked in requests()], plain["all"])
    drafted, accepted, steps = (now - then for now, then in zip(counts(server), before, strict=True))
    assert 0 < accepted <= drafted
    num_tokens = sum(len(answer.token_ids) for answer in plain["all"])
    # A step for each token that is not an accepted draft, one surplus step at each end, and one release.
    assert num_tokens - accepted <= steps <= num_tokens - accepted + 2 * len(requests())
    assert accepted > num_tokens / 5
    check_idle(server)


def test_answers_together_and_streamed_are_the_same(server: Server, plain: dict[str, list[Answer]]) -> None:
    ask = server.client
    calls = [lambda prompt=prompt, asked=asked: ask.generate(prompt, **asked) for prompt, asked in requests()]
    check(ask.together(calls), plain["all"])
    streams = [lambda prompt=prompt: ask.generate_stream(prompt, **GREEDY) for prompt in REPETITIVE]
    for answer, expected in zip(ask.together(streams), plain["all"][: 2 * len(REPETITIVE) : 2], strict=True):
        assert (answer.token_ids, answer.text) == (expected.token_ids, expected.text)
    check_idle(server)


def test_requests_with_penalties_are_not_drafted(server: Server, plain: dict[str, list[Answer]]) -> None:
    before = counts(server)
    check([server.client.generate(prompt, **PENALIZED) for prompt in REPETITIVE], plain["penalized"])
    assert counts(server)[0] == before[0]


def test_answers_end_at_the_right_token_with_drafts(server: Server, plain: dict[str, list[Answer]]) -> None:
    whole = plain["all"][0]
    for length in range(20, 30):
        answer = server.client.generate(REPETITIVE[0], **GREEDY | {"max_new_tokens": length})
        assert (answer.token_ids, answer.finish_reason) == (whole.token_ids[:length], "length")
    stop = whole.text[40:46]
    answer = server.client.generate(REPETITIVE[0], **GREEDY, stop=[stop])
    assert answer.finish_reason == "stop_sequence"
    assert answer.text == whole.text[: whole.text.index(stop) + len(stop)]
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
    body = {"prompt": REPETITIVE[0], "max_tokens": 48, "temperature": 0, "stop": [stop], "ignore_eos": True}
    text = server.client.ok("/v1/completions", body)["choices"][0]["text"]
    assert text == whole.text[: whole.text.index(stop)]
    check_idle(server)


def test_drafts_survive_a_killed_shard(smollm2: Path, plain: dict[str, list[Answer]]) -> None:
    with Server("--model-id", smollm2, "--dtype", "float32", "--speculate", 8) as server:
        ask = server.client
        killed = []

        def kill() -> None:
            wait_for(lambda: counts(server)[1] > 10, 60, "drafts are accepted", every_s=0.005)
            killed.append(server.shards()[0].kill())

        calls = [lambda prompt=prompt, asked=asked: ask.generate(prompt, **asked) for prompt, asked in requests()]
        check(ask.together([*calls, kill])[:-1], plain["all"])
        assert killed
        wait_for(lambda: ask.metric("gridwork_shard_restarts_total") > 0, 30, "the loss is noticed")
        check_idle(server)


def test_drafts_while_sequences_are_preempted(smollm2: Path, plain: dict[str, list[Answer]]) -> None:
    """Runs with a cache for few of the sequences."""
    with Server(
        *("--model-id", smollm2, "--dtype", "float32", "--speculate", 4, "--max-total-tokens", 240),
        *("--kv-cache-memory", 256 * cache_bytes_per_token(smollm2)),
    ) as server:
        ask = server.client
        long = [lambda i=i: ask.generate("ABC"[i], max_new_tokens=150, ignore_eos=True) for i in range(3)]
        calls = [lambda prompt=prompt, asked=asked: ask.generate(prompt, **asked) for prompt, asked in requests()]
        check(ask.together(long + calls)[len(long) :], plain["all"])
        assert ask.metric("gridwork_preemptions_total") > 0
        assert counts(server)[1] > 0
        check_idle(server)


def test_drafts_over_two_shards(smollm2: Path, plain: dict[str, list[Answer]]) -> None:
    with Server("--model-id", smollm2, "--dtype", "float32", "--speculate", 4, "--num-shard", 2) as server:
        calls = [lambda prompt=prompt: server.client.generate(prompt, **GREEDY) for prompt in REPETITIVE]
        answers = server.client.together(calls)
        expected = plain["all"][: 2 * len(REPETITIVE) : 2]
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
        assert counts(server)[1] > 0
        check_idle(server)


def circle(server: Server, prompt: str) -> list[int]:
    """A long answer, in which a random model repeats itself."""
    return server.client.generate(prompt, max_new_tokens=200, ignore_eos=True).token_ids


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
@pytest.mark.parametrize("flags", [(), ("--disable-prefix-cache",)])
def test_drafts_on_windows_and_other_families(family: str, flags: tuple[str, ...], tiny: TinyModels) -> None:
    prompts = [f"{line} {line}" for line in OTHERS]
    answers = []
    for speculate in (0, 6):
        with Server("--model-id", tiny(family), "--dtype", "float32", "--speculate", speculate, *flags) as server:
            answers.append(server.client.together([partial(circle, server, prompt) for prompt in prompts]))
            assert (counts(server)[1] > 0) == (speculate > 0)
            check_idle(server)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("value", ["17", "-1", "medusa"])
def test_bad_values_are_refused(tiny: TinyModels, value: str) -> None:
    assert "--speculate" in refused("--model-id", tiny("llama"), "--speculate", value)
    assert "--speculate" in refused("--model-id", tiny("llama"), env={"SPECULATE": value})


def test_models_on_other_paths_are_refused_with_the_reason(tiny: TinyModels, tmp_path: Path) -> None:
    log = refused("--model-id", tiny("llama"), "--speculate", "2", "--model-impl", "batched")
    assert "--speculate" in log and "--model-impl batched" in log

    config = GPTJConfig(vocab_size=VOCAB_SIZE, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=512)
    torch.manual_seed(0)
    GPTJForCausalLM(config).save_pretrained(tmp_path)
    tokenizer_file(tmp_path)
    log = refused_once_loaded("--model-id", tmp_path, "--speculate", "2")
    assert "--speculate 2 needs a model on the paged path, and this one runs on the batched path" in log
    assert "does not support Transformers' attention interface" in log.split("--speculate 2 needs")[1]


def test_encoders_are_refused(minilm: Path) -> None:
    log = refused_once_loaded("--model-id", minilm, "--speculate", "2")
    assert "--speculate 2 needs a model that generates" in log


def refused_once_loaded(*flags: str | Path) -> str:
    """The path is known only after the model is loaded."""
    server = Server(*flags)
    server.start()
    try:
        assert server.wait_exit(timeout_s=60) > 0, server.log_tail()
        server.assert_nothing_survives()
    finally:
        server.kill()
    assert "panicked" not in server.log() and "Traceback" not in server.log(), server.log_tail()
    return " ".join(server.log().split())
