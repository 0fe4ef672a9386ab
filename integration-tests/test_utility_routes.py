"""Routes that tell about the server, render prompts, score texts and abort requests; parameters of prompts."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import encoders
from support.server import Server, wait_for
from transformers import AutoTokenizer

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
PROMPT = "The capital of France is"
KEY = "a-key"


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[Server]:
    flags = ("--dtype", "float32", "--max-total-tokens", "2048")
    with Server("--model-id", smollm2, *flags, env={"API_KEY": f"{KEY},other"}) as running:
        running.client.http.headers["authorization"] = f"Bearer {KEY}"
        yield running


# --- about the server ---------------------------------------------------------------------------------------------


def test_the_version_and_the_tokenizer_are_told(server: Server, smollm2: Path) -> None:
    assert server.client.get("/version").json()["version"] == server.client.get("/info").json()["version"]
    config = server.client.get("/tokenizer_info").json()
    written = json.loads((smollm2 / "tokenizer_config.json").read_text())
    assert config["eos_token"] == written["eos_token"]
    assert "<|im_start|>" in config["chat_template"]
    for path in ("/tokenizer_info", "/version"):
        assert server.client.http.get(path, headers={"authorization": ""}).status_code == 401, path


def test_doubled_and_last_slashes_are_ignored(server: Server) -> None:
    http = server.client.http
    for path in ("/v1//models", "//v1/models/", "/v1/models"):
        assert http.get(server.url + path).status_code == 200, path
    assert http.post(f"{server.url}//v1/chat/completions/", json=CHAT | {"max_tokens": 1}).status_code == 200
    for path in ("//tokenizer_info", "/v1//responses/resp_1"):
        assert http.get(server.url + path, headers={"authorization": ""}).status_code == 401, path
    assert http.get(f"{server.url}/docs/").status_code == 200


def test_only_allowed_tokens_are_generated(server: Server) -> None:
    (allowed,) = server.client.ok("/v1/completions/render", {"prompt": " Rome cat"})
    ids = allowed["token_ids"]
    body = {"prompt": PROMPT, "max_tokens": 6, "logprobs": 0, "allowed_token_ids": ids}
    (choice,) = server.client.ok("/v1/completions", body)["choices"]
    assert set(choice["logprobs"]["tokens"]) <= {" Rome", " cat"}
    for wrong in ([], [10**6]):
        refused = server.client.post("/v1/completions", body | {"allowed_token_ids": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "allowed_token_ids")


# --- prompts ------------------------------------------------------------------------------------------------------


def test_rendered_prompts_are_those_that_are_answered(server: Server, smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    rendered = server.client.ok("/v1/chat/completions/render", CHAT)
    expected = tokenizer.apply_chat_template(CHAT["messages"], add_generation_prompt=True, tokenize=False)
    assert rendered["prompt"] == expected
    assert rendered["token_ids"] == tokenizer(expected, add_special_tokens=False).input_ids
    answered = server.client.ok("/v1/chat/completions", CHAT | {"max_tokens": 1})
    assert rendered["count"] == answered["usage"]["prompt_tokens"]
    first, second = server.client.ok("/v1/completions/render", {"prompt": [PROMPT, "Hi"]})
    assert (first["prompt"], first["token_ids"]) == (PROMPT, tokenizer(PROMPT).input_ids)
    (by_ids,) = server.client.ok("/v1/completions/render", {"prompt": second["token_ids"]})
    assert (by_ids["prompt"], by_ids["token_ids"]) == (None, second["token_ids"])
    for path, field in (("/v1/chat/completions/render", "messages"), ("/v1/completions/render", "prompt")):
        assert server.client.post(path, {field: []}).status_code == 400


def test_prompts_are_cut_at_their_end(server: Server) -> None:
    def prompt_tokens(path: str, body: dict[str, Any]) -> int:
        return server.client.ok(path, body | {"max_tokens": 1})["usage"]["prompt_tokens"]

    long = "hello " * 9000
    assert prompt_tokens("/v1/completions", {"prompt": long, "truncate_prompt_tokens": 7}) == 7
    assert prompt_tokens("/v1/completions", {"prompt": long, "truncate_prompt_tokens": -1}) == 2047
    assert prompt_tokens("/v1/chat/completions", CHAT | {"truncate_prompt_tokens": 5}) == 5
    for tokens in (0, -2, 9000):
        refused = server.client.post("/v1/completions", {"prompt": "a", "truncate_prompt_tokens": tokens})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "truncate_prompt_tokens"


def test_log_probabilities_of_prompts_are_those_of_echoes(server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    (choice,) = server.client.ok("/v1/completions", body | {"prompt_logprobs": 3})["choices"]
    (echo,) = server.client.ok("/v1/completions", body | {"echo": True, "logprobs": 3})["choices"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    assert choice["logprobs"] is None
    echoed = list(zip(echo["logprobs"]["tokens"], echo["logprobs"]["token_logprobs"], strict=True))[1 : 1 + len(others)]
    for entries, (text, logprob) in zip(others, echoed, strict=True):
        assert len(entries) in (3, 4)
        assert sorted(entry["rank"] for entry in entries.values() if entry["rank"]) == [1, 2, 3]
        (own,) = [entry for entry in entries.values() if entry["decoded_token"] == text]
        assert own["logprob"] == pytest.approx(logprob, abs=1e-4)
    chat = server.client.ok("/v1/chat/completions", CHAT | {"max_tokens": 1, "prompt_logprobs": 0})
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    for more in ({"stream": True}, {"prompt_logprobs": 1000}, {"prompt_logprobs": -1}):
        refused = server.client.post("/v1/completions", body | {"prompt_logprobs": 1} | more)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_logprobs")


def test_a_suffix_needs_a_model_that_fills_in_the_middle(server: Server) -> None:
    refused = server.client.post("/v1/completions", {"prompt": "def f():", "suffix": "return x"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix")
    assert server.client.ok("/v1/completions", {"prompt": "a", "suffix": "", "max_tokens": 1})["choices"]


# --- Vertex AI ----------------------------------------------------------------------------------------------------


def test_vertex_answers_each_instance(server: Server) -> None:
    instances = [{"inputs": PROMPT, "parameters": {"max_new_tokens": 3}}, CHAT | {"max_tokens": 20, "stream": True}]
    predictions = server.client.ok("/vertex", {"instances": instances})["predictions"]
    assert predictions == [" Paris.\n", "The capital of France is Paris."]
    for wrong in ([], [{"inputs": "a", "parameters": {"max_new_tokens": 0}}]):
        assert server.client.post("/vertex", {"instances": wrong}).status_code == 422


# --- abort --------------------------------------------------------------------------------------------------------


def test_a_stream_is_aborted_by_either_of_its_ids_with_the_same_key(server: Server) -> None:
    http = server.client.http
    endless = CHAT | {"stream": True, "ignore_eos": True}
    for path, body, own_id in [
        ("/v1/chat/completions", endless, True),
        ("/v1/chat/completions", endless, False),
        ("/v1/messages", {"messages": CHAT["messages"], "stream": True, "max_tokens": 8000, "temperature": 2}, False),
    ]:
        with http.stream("POST", path, json=body) as response:
            lines = response.iter_lines()
            first = json.loads(next(line for line in lines if line.startswith("data:"))[5:])
            request_id = first["id"] if own_id else response.headers["x-request-id"]
            other = http.post(
                "/abort_requests", json={"request_ids": [request_id]}, headers={"authorization": "Bearer other"}
            )
            assert other.json() == {"aborted": [], "unknown": [request_id]}
            aborted = server.client.ok("/abort_request", {"rid": request_id})
            assert aborted == {"aborted": [request_id], "unknown": []}
            rest = [line for line in lines if line]
        assert "aborted by its id" in rest[-1]
    assert server.client.post("/abort_requests", {"request_ids": []}).status_code == 400


def test_an_answer_that_is_not_streamed_is_aborted(server: Server) -> None:
    found: list[Any] = []

    def ask() -> None:
        body = CHAT | {"ignore_eos": True, "max_tokens": 1900}
        found.append(server.client.post("/v1/chat/completions", body, headers={"x-request-id": "mine"}))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(
        lambda: server.client.ok("/abort_requests", {"request_ids": ["mine"]})["aborted"] == ["mine"], 60, "it runs"
    )
    thread.join()
    (response,) = found
    assert (response.status_code, response.json()["error"]["code"]) == (499, "aborted")


# --- scores -------------------------------------------------------------------------------------------------------


def test_a_reranker_scores_pairs(minilm: Path, tmp_path: Path) -> None:
    with Server("--model-id", encoders.classifier(tmp_path / "tiny", minilm, ["relevance"])) as running:
        query, texts = "Where is the cat?", ["On the mat.", "In the sky."]
        ranked = running.client.ok("/v1/rerank", {"query": query, "documents": texts})["results"]
        expected = [entry["relevance_score"] for entry in sorted(ranked, key=lambda entry: entry["index"])]
        for body in (
            {"text_1": query, "text_2": texts},
            {"text_1": [query, query], "text_2": texts},
            {"queries": query, "documents": texts},
        ):
            data = running.client.ok("/v1/score", body)["data"]
            assert [entry["index"] for entry in data] == [0, 1]
            assert [entry["score"] for entry in data] == pytest.approx(expected)
        refused = running.client.post("/score", {"text_1": [query] * 3, "text_2": texts})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "text_1")


def test_vectors_score_by_their_cosine(minilm: Path) -> None:
    with Server("--model-id", minilm) as running:
        texts = ["A cat sits.", "The stock market fell."]
        data = running.client.ok("/v1/score", {"text_1": "A kitten sits.", "text_2": texts})["data"]
        expected = running.client.ok(
            "/similarity", {"inputs": {"source_sentence": "A kitten sits.", "sentences": texts}}
        )
        assert [entry["score"] for entry in data] == pytest.approx(expected, abs=1e-5)
        predictions = running.client.ok("/vertex", {"instances": [{"inputs": "A cat sits."}]})["predictions"]
        assert len(predictions[0][0]) == 384
