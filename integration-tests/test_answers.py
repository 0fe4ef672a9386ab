"""Answers of the default model on every route; streamed and whole answers agree."""

import json
from pathlib import Path

import pytest
from support.reference import chat_answer
from support.server import Server

QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


def test_the_capital_of_france_is_paris(smollm2_server: Server) -> None:
    reply = smollm2_server.client.ok("/v1/chat/completions", QUESTION)
    choice = reply["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "The capital of France is Paris."}
    assert choice["finish_reason"] == "stop"
    assert reply["object"] == "chat.completion"
    assert reply["id"]
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 8  # seven of text, one that ends the turn


def test_a_chat_stream_equals_the_whole_answer(smollm2_server: Server) -> None:
    body = QUESTION | {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(smollm2_server.client.stream("/v1/chat/completions", body))
    *parts, usage = chunks
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    deltas = [chunk["choices"][0]["delta"] for chunk in parts]
    assert deltas[0].get("role") == "assistant"
    assert all("role" not in delta for delta in deltas[1:])
    assert "".join(delta.get("content") or "" for delta in deltas) == "The capital of France is Paris."
    assert [chunk["choices"][0]["finish_reason"] for chunk in parts if chunk["choices"][0]["finish_reason"]] == ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_chat_continues_the_conversation(smollm2_server: Server, smollm2: Path) -> None:
    messages = [
        {"role": "system", "content": "You answer briefly."},
        {"role": "user", "content": "My name is Ada. Remember it."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": "What is my name?"},
    ]
    reply = smollm2_server.client.ok(
        "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_completion_tokens": 24}
    )
    text, num_prompt_tokens = chat_answer(smollm2, messages, max_new_tokens=24)
    assert reply["choices"][0]["message"]["content"] == text
    assert reply["usage"]["prompt_tokens"] == num_prompt_tokens


def test_two_answers_have_different_ids(smollm2_server: Server) -> None:
    ids = [smollm2_server.client.ok("/v1/chat/completions", QUESTION | {"max_tokens": 1})["id"] for _ in range(2)]
    assert ids[0] != ids[1]


def test_a_completion_stops_at_max_tokens(smollm2_server: Server) -> None:
    reply = smollm2_server.client.ok(
        "/v1/completions", {"prompt": "The capital of France is", "max_tokens": 5, "temperature": 0}
    )
    assert reply["object"] == "text_completion"
    assert reply["choices"][0]["text"].startswith(" Paris")
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 5


def test_a_completion_stream_equals_the_whole_answer(smollm2_server: Server) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
    whole = smollm2_server.client.ok("/v1/completions", body)["choices"][0]
    chunks = list(smollm2_server.client.stream("/v1/completions", body | {"stream": True}))
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    assert text == whole["text"]


def test_several_prompts_are_answered_in_order(smollm2_server: Server) -> None:
    prompts = ["The capital of France is", "The capital of Italy is", "One, two, three,"]
    body = {"max_tokens": 6, "temperature": 0}
    alone = [smollm2_server.client.ok("/v1/completions", body | {"prompt": p})["choices"][0]["text"] for p in prompts]
    choices = smollm2_server.client.ok("/v1/completions", body | {"prompt": prompts})["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert [choice["text"] for choice in choices] == alone


def test_generate_and_its_stream_agree(smollm2_server: Server) -> None:
    client = smollm2_server.client
    whole = client.generate("The first thing to know about bees is", max_new_tokens=32)
    streamed = client.generate_stream("The first thing to know about bees is", max_new_tokens=32)
    assert streamed.token_ids == whole.token_ids
    assert streamed.text == whole.text
    assert streamed.finish_reason == whole.finish_reason == "length"
    assert whole.details["generated_tokens"] == 32


def test_the_root_route_answers_as_a_list_or_a_stream(smollm2_server: Server) -> None:
    client = smollm2_server.client
    body = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 3, "return_full_text": False}}
    reply = client.ok("/", body)
    events = list(client.stream("/", body | {"stream": True}))
    assert reply == [{"generated_text": events[-1]["generated_text"]}]


EMOJI = "Repeat exactly: 👩‍🚀🚀✨ naïve café 東京 한국어 🇫🇷"


def test_characters_split_over_tokens_are_streamed_whole(smollm2_server: Server) -> None:
    body = {"messages": [{"role": "user", "content": EMOJI}], "temperature": 0, "max_tokens": 48}
    client = smollm2_server.client
    whole = client.ok("/v1/chat/completions", body)["choices"][0]["message"]["content"]
    assert any(ord(character) > 0xFFFF for character in whole), whole
    with client.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        lines = [line for line in b"".join(response.iter_raw()).split(b"\n") if line.startswith(b"data: {")]
    chunks = [json.loads(line[6:].decode("utf-8", errors="strict")) for line in lines]
    parts = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(parts) == whole
    # Only a character that the model left incomplete, at the very end, may be replaced.
    assert "\ufffd" not in whole[:-1]


@pytest.mark.parametrize("stop", ["Paris", "is Par", "s Paris.", "apital of"])
def test_a_stop_string_is_never_sent_on_openai_routes(smollm2_server: Server, stop: str) -> None:
    client = smollm2_server.client
    expected = "The capital of France is Paris.".split(stop)[0]
    whole = client.ok("/v1/chat/completions", QUESTION | {"stop": stop})["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == (expected, "stop")
    chunks = list(client.stream("/v1/chat/completions", QUESTION | {"stop": [stop], "stream": True}))
    streamed = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert streamed == expected


def test_a_stop_string_is_part_of_the_text_on_tgi_routes(smollm2_server: Server) -> None:
    answer = smollm2_server.client.generate("The capital of France is", max_new_tokens=20, stop=["Par"])
    assert answer.finish_reason == "stop_sequence"
    assert answer.text == " Par"


def test_tokenize_gives_ids_and_offsets(smollm2_server: Server) -> None:
    text = "Straße 🚀 ok"
    tokens = smollm2_server.client.ok("/tokenize", {"inputs": text})
    assert all({"id", "text", "start", "stop"} <= set(token) for token in tokens)
    assert tokens[0]["start"] == 0
    assert tokens[-1]["text"] == text.encode()[tokens[-1]["start"] : tokens[-1]["stop"]].decode()


def test_info_tells_how_the_model_is_run(smollm2_server: Server) -> None:
    info = smollm2_server.client.get("/info").json()
    text = json.dumps(info)
    for expected in ("paged", "float32", "cpu"):
        assert expected in text, info
    assert info["max_concurrent_requests"] == 256
    assert info["version"]


def test_models_docs_and_health_answer(smollm2_server: Server) -> None:
    client = smollm2_server.client
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert len(models["data"]) == 1
    named = client.ok("/v1/completions", {"model": models["data"][0]["id"], "prompt": "Hi", "max_tokens": 1})
    assert named["model"] == models["data"][0]["id"]
    assert client.get("/health").status_code == 200
    assert client.get("/ping").status_code == 200
    assert client.get("/").status_code == 200
    page = client.http.get("/docs", follow_redirects=True)
    assert page.status_code == 200
    assert "html" in page.headers["content-type"]
    assert "/v1/chat/completions" in client.get("/api-doc/openapi.json").json()["paths"]


def test_an_answer_without_a_limit_ends_at_the_context(tiny_server: Server) -> None:
    info = tiny_server.client.get("/info").json()
    answer = tiny_server.client.generate("The harbour wakes")
    total = answer.details["generated_tokens"] + len(
        tiny_server.client.ok("/tokenize", {"inputs": "The harbour wakes"})
    )
    assert answer.finish_reason == "eos_token" or total == info["max_total_tokens"]
