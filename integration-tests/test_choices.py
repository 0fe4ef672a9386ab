"""Texts for one prompt share its blocks; log-probabilities equal those of Transformers, and tell the best texts."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.server import Server, wait_for
from support.text import text_of_tokens
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

TinyModels = Callable[[str], Path]

BLOCK_TOKENS = 16
PROMPT_BLOCKS = 20


@pytest.fixture(scope="module")
def server(trap: Path) -> Iterator[Server]:
    """Steps that take a while, so that what runs can be looked at."""
    flags = ("--dtype", "float32", "--trust-remote-code", "--block-size", BLOCK_TOKENS, "--max-concurrent-requests", 64)
    with Server("--model-id", trap, *flags) as running:
        yield running


def prompt_of(folder: Path, num_tokens: int, start: int) -> str:
    return text_of_tokens(Tokenizer.from_file(str(folder / "tokenizer.json")), num_tokens, start=start)


@pytest.mark.parametrize("field", ["n", "best_of"])
@pytest.mark.parametrize("is_known", [False, True], ids=["new", "cached"])
def test_choices_share_the_blocks_of_their_prompt(server: Server, trap: Path, field: str, is_known: bool) -> None:
    client = server.client
    prompt = prompt_of(trap, PROMPT_BLOCKS * BLOCK_TOKENS + 5, start=100 * (2 * (field == "n") + is_known))
    body = {"prompt": prompt, "max_tokens": 24, "temperature": 1.0, "seed": 1}
    if is_known:
        client.ok("/v1/completions", body | {"max_tokens": 1})
    wait_for(lambda: client.metric("gridwork_cache_blocks_used") == 0, 20, "nothing runs")
    most = 0.0

    def watch() -> None:
        nonlocal most
        while client.metric("gridwork_running_sequences") == 0:
            pass
        while (metrics := client.metrics())["gridwork_running_sequences"] > 0:
            most = max(most, metrics["gridwork_cache_blocks_used"])

    reply, _ = client.together([lambda: client.ok("/v1/completions", body | {field: 4}), watch])
    assert len(reply["choices"]) == (4 if field == "n" else 1)
    own = math.ceil((5 + 24) / BLOCK_TOKENS) + 1
    assert PROMPT_BLOCKS < most <= PROMPT_BLOCKS + 4 * own


def test_the_best_of_several_texts_are_those_of_highest_mean_log_probability(tiny_server: Server) -> None:
    client = tiny_server.client
    body = {"prompt": ["The harbour", "wakes before"], "max_tokens": 12, "temperature": 1.3, "seed": 4, "logprobs": 0}
    every = client.ok("/v1/completions", body | {"n": 6})
    assert len(every["choices"]) == 12

    def mean(choice: dict[str, Any]) -> float:
        logprobs = choice["logprobs"]["token_logprobs"]
        return sum(logprobs) / len(logprobs)

    expected = []
    for prompt in (0, 1):
        ranked = sorted(every["choices"][6 * prompt : 6 * prompt + 6], key=mean, reverse=True)
        expected += [choice["text"] for choice in ranked[:2]]
    best = client.ok("/v1/completions", body | {"n": 2, "best_of": 6})
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in best["choices"]] == expected
    # All texts that were generated count.
    assert best["usage"] == every["usage"]
    silent = {key: value for key, value in body.items() if key != "logprobs"}
    alone = client.ok("/v1/completions", silent | {"best_of": 6})
    assert [choice["text"] for choice in alone["choices"]] == [expected[0], expected[2]]
    assert alone["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": "two"}, "best_of"),
    ],
)
def test_a_wrong_best_of_is_refused_by_name(tiny_server: Server, body: dict[str, Any], field: str) -> None:
    response = tiny_server.client.post("/v1/completions", {"prompt": "hi", "max_tokens": 1} | body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == field


def test_log_probabilities_are_those_of_transformers(tiny: TinyModels, tiny_server: Server) -> None:
    folder = tiny("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    top = 5
    for num_tokens, temperature in ((3, 0.0), (80, 1.2), (300, 0.7)):
        prompt = prompt_of(folder, num_tokens, start=num_tokens)
        body = {"prompt": prompt, "max_tokens": 20, "temperature": temperature, "seed": 2, "logprobs": top}
        [choice] = tiny_server.client.ok("/v1/completions", body | {"echo": True})["choices"]
        found = choice["logprobs"]
        generated = tiny_server.client.generate(
            prompt,
            max_new_tokens=20,
            decoder_input_details=True,
            top_n_tokens=top,
            **({"do_sample": True, "temperature": temperature, "seed": 2} if temperature else {}),
        )
        ids = tokenizer.encode(prompt).ids + generated.token_ids
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert len(found["tokens"]) == len(ids)
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        for position in range(1, len(ids)):
            row, token = expected[position - 1], ids[position]
            assert found["token_logprobs"][position] == pytest.approx(float(row[token]), abs=1e-4)
            tops = sorted(found["top_logprobs"][position].values(), reverse=True)[:top]
            # Two tokens of the same text count once there. The token itself is there too.
            named = {token, *row.topk(top).indices.tolist()}
            if len(found["top_logprobs"][position]) == len(named):
                assert tops == pytest.approx(row.topk(top).values.tolist(), abs=1e-4)
        details = generated.details
        known = [token["logprob"] for token in details["prefill"][1:]] + [t["logprob"] for t in details["tokens"]]
        picked = expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert known == pytest.approx(picked.tolist(), abs=1e-4)
        for place, tops in enumerate(details["top_tokens"]):
            best = expected[num_tokens - 1 + place].topk(top)
            assert [one["logprob"] for one in tops] == pytest.approx(best.values.tolist(), abs=1e-4)
