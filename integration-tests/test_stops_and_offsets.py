"""Stop strings that are special tokens, and text offsets of the tokens of a completion."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.server import Server
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM

SPECIAL, SPECIAL_ID = "<|kill|>", 1


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokenizer adds a special token before a text."""
    folder = tmp_path_factory.mktemp("offsets") / "tiny"
    shutil.copytree(tiny("llama"), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|nan|> $A", special_tokens=[("<|nan|>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with Server("--model-id", folder, "--dtype", "float32") as running:
        yield running


# --- stop strings -------------------------------------------------------------------------------------------------


def test_a_hidden_special_token_ends_the_text(server: Server) -> None:
    body: dict[str, Any] = {"prompt": "hi", "max_tokens": 6, "temperature": 0, "logit_bias": {str(SPECIAL_ID): 100}}
    for more in ({}, {"include_stop_str_in_output": True}, {"skip_special_tokens": False}, {"ignore_eos": True}):
        for stop in ([SPECIAL], ["x", SPECIAL], [SPECIAL, SPECIAL * 2]):
            reply = server.client.ok("/v1/completions", body | more | {"stop": stop})
            (choice,) = reply["choices"]
            assert (choice["finish_reason"], reply["usage"]["completion_tokens"]) == ("stop", 1), (more, stop)
            assert choice["text"] == ""
            chunks = list(server.client.stream("/v1/completions", body | more | {"stop": stop, "stream": True}))
            assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    twice = server.client.ok("/v1/completions", body | {"stop": SPECIAL * 2})
    assert (twice["choices"][0]["finish_reason"], twice["usage"]["completion_tokens"]) == ("stop", 2)
    tgi = server.client.generate("hi", max_new_tokens=6, logit_bias={str(SPECIAL_ID): 100}, stop=[SPECIAL])
    assert (tgi.token_ids, tgi.text, tgi.finish_reason) == ([SPECIAL_ID], "", "stop_sequence")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_an_answer_names_what_stopped_it(server: Server, route: str, stream: bool) -> None:
    forced: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logit_bias": {str(SPECIAL_ID): 100}, "stream": stream}
    if route == "/v1/completions":
        forced["prompt"] = "hi"
    else:
        forced["messages"] = [{"role": "user", "content": "hi"}]
    cases: list[tuple[dict[str, Any], str | int | None]] = [
        ({"stop": ["x", SPECIAL]}, SPECIAL),
        ({"stop_token_ids": [SPECIAL_ID]}, SPECIAL_ID),
        ({"ignore_eos": True}, None),
    ]
    for stop, expected in cases:
        body = forced | stop
        if stream:
            choices = [chunk["choices"][0] for chunk in server.client.stream(route, body)]
            assert not any("stop_reason" in choice for choice in choices[:-1])
            choice = choices[-1]
        else:
            (choice,) = server.client.ok(route, body)["choices"]
        assert choice.get("stop_reason") == expected, body
        assert choice["finish_reason"] == ("length" if expected is None else "stop")


def test_text_of_a_stop_string_with_a_special_token_is_hidden(smollm2_server: Server) -> None:
    chat = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 30,
        "ignore_eos": True,
    }
    for stop, text in [
        ("<|im_end|>", "The capital of France is Paris."),
        ("Paris.<|im_end|>", "The capital of France is "),
        (".<|im_end|>\n", "The capital of France is Paris"),
    ]:
        for stream in (False, True):
            body = chat | {"stop": stop, "stream": stream}
            if stream:
                chunks = list(smollm2_server.client.stream("/v1/chat/completions", body))
                got = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
                reason = chunks[-1]["choices"][0]["finish_reason"]
            else:
                (choice,) = smollm2_server.client.ok("/v1/chat/completions", body)["choices"]
                got, reason = choice["message"]["content"], choice["finish_reason"]
            assert (got, reason) == (text, "stop"), stop
    ended = smollm2_server.client.ok("/v1/chat/completions", chat | {"stop": "Paris.<|im_end|>", "ignore_eos": False})
    assert ended["choices"][0]["message"]["content"] == "The capital of France is "


# --- offsets ------------------------------------------------------------------------------------------------------

TEXTS = ["The boats", "é😀 漢字 naïve", "a<|kill|>b", " two  spaces\n\n", "😀😀"]


def check(text: str, logprobs: dict[str, Any], hidden: set[str]) -> None:
    """Checks that each shown token is in the text at its offset."""
    tokens, offsets = logprobs["tokens"], logprobs["text_offset"]
    assert len({len(values) for values in logprobs.values()}) == 1
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(text) for offset in offsets)
    for token, offset, following in zip(tokens, offsets, [*offsets[1:], len(text)], strict=True):
        rest = text[offset:]
        if following == offset or "\ufffd" in token:
            # Hidden, cut off, or part of a character: all parts have the character's offset.
            continue
        if token in hidden and not rest.startswith(token):
            # After bytes that do not become a character.
            assert rest.startswith("\ufffd") and following == offset + 1, (token, offset, text)
            continue
        assert rest.startswith(token) or token.startswith(rest), (token, offset, text)
        assert following - offset <= len(token), (token, offset, text)


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_agree_with_the_text(server: Server, folder: Path, stream: bool) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    partial = tokenizer.encode("é😀", add_special_tokens=False).ids[:-1]
    ids = [tokenizer.encode(text, add_special_tokens=True).ids for text in TEXTS]
    prompts: list[Any] = [*TEXTS, *ids, [5, *partial, 6]]
    options = itertools.product(prompts, (False, True), (None, True, False))
    for seed, (prompt, skip, add_special) in enumerate(options):
        body: dict[str, Any] = {
            "prompt": prompt,
            "echo": True,
            "logprobs": 2,
            "max_tokens": 12,
            "seed": seed,
            "temperature": 1.5,
            "ignore_eos": True,
            "skip_special_tokens": skip,
            "add_special_tokens": add_special,
            # Special tokens between others.
            "logit_bias": {str(SPECIAL_ID): 3},
        }
        whole = _completion(server, body, stream)
        hidden = {"<|kill|>", "<|end|>", "<|nan|>"} if skip else set()
        check(whole["text"], whole["logprobs"], hidden)
        begin = len(whole["text"]) - 6
        stopped = _completion(server, body | {"stop": whole["text"][begin:][:3] or "x"}, stream)
        check(stopped["text"], stopped["logprobs"], hidden)
        if isinstance(prompt, str):
            assert whole["text"].startswith(prompt)


def _completion(server: Server, body: dict[str, Any], stream: bool) -> dict[str, Any]:
    """The only choice, joined from its chunks when it was streamed."""
    if not stream:
        return server.client.ok("/v1/completions", body)["choices"][0]
    text = ""
    logprobs: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in server.client.stream("/v1/completions", body | {"stream": True}):
        assert "error" not in chunk, chunk
        (choice,) = chunk["choices"]
        text += choice["text"]
        for name, values in logprobs.items():
            values.extend(choice["logprobs"][name])
    whole = server.client.ok("/v1/completions", body)["choices"][0]
    assert (text, json.dumps(logprobs)) == (whole["text"], json.dumps(whole["logprobs"]))
    return {"text": text, "logprobs": logprobs}


# --- the prompt's alternatives ------------------------------------------------------------------------------------


@torch.inference_mode()
def test_alternatives_of_prompt_tokens_equal_those_of_transformers(server: Server, folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode("The boats are past the breakwater and the boats are past").ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for count in (0, 1, 5):
        body = {"prompt": ids, "echo": True, "logprobs": count, "max_tokens": 0}
        logprobs = server.client.ok("/v1/completions", body)["choices"][0]["logprobs"]
        tops = logprobs["top_logprobs"]
        assert tops[0] is None and logprobs["token_logprobs"][0] is None
        for position in range(1, len(ids)):
            values, best = expected[position - 1].topk(max(count, 1))
            own = logprobs["token_logprobs"][position]
            assert own == pytest.approx(float(expected[position - 1, ids[position]]), abs=1e-4)
            assert logprobs["tokens"][position] in tops[position]
            # Parts of characters have the same text, and the most likely one is shown.
            assert 1 <= len(tops[position]) <= count + 1
            if count:
                assert next(iter(tops[position].values())) == pytest.approx(float(values[0]), abs=1e-4)
                is_greedy = int(best[0]) == ids[position]
                assert is_greedy == (own == max(tops[position].values()))
