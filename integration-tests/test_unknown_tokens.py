"""Tokens of the tokenizer without a row in the model: every route refuses them by name, before a stream begins."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.client import Answer
from support.models import VOCAB_SIZE
from support.server import Server

NEW = "<|new|>"
TEXT = f"a good {NEW} map"


def with_another_token(folder: Path, target: Path, token_id: int) -> Path:
    """A copy whose tokenizer has one token more than the model."""
    shutil.copytree(folder, target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": token_id, "content": NEW, "special": True} | flags)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    return target


@pytest.fixture(scope="module")
def server(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = with_another_token(tiny("llama"), tmp_path_factory.mktemp("models") / "llama", VOCAB_SIZE)
    with Server("--model-id", folder, "--dtype", "float32") as running:
        yield running


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/generate", {"inputs": TEXT}, "inputs"),
    ("/generate_stream", {"inputs": TEXT}, "inputs"),
    ("/", {"inputs": TEXT, "stream": True}, "inputs"),
    ("/v1/completions", {"prompt": TEXT}, "prompt"),
    ("/v1/completions", {"prompt": TEXT, "stream": True}, "prompt"),
    ("/v1/completions", {"prompt": ["a map", TEXT]}, "prompt"),
    ("/v1/completions", {"prompt": [5, VOCAB_SIZE, 6]}, "prompt"),
    ("/v1/completions", {"prompt": [5, VOCAB_SIZE, 6], "stream": True}, "prompt"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}]}, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], "stream": True}, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": NEW, "content": "a map"}]}, "messages"),
]


@pytest.mark.parametrize(("path", "body", "field"), REFUSED, ids=lambda value: str(value)[:60])
def test_an_unknown_token_is_refused_by_name(path: str, body: dict[str, Any], field: str, server: Server) -> None:
    response = server.client.post(path, body)
    assert response.status_code == (400 if path.startswith("/v1/") else 422), response.text
    error = response.json()["error"]
    message = error["message"] if isinstance(error, dict) else error
    for words in (f"`{field}`", f"token {VOCAB_SIZE} (`{NEW}`)", f"{VOCAB_SIZE} tokens"):
        assert words in message


def test_an_unknown_token_that_is_truncated_is_ignored(server: Server) -> None:
    rest = server.client.generate(f"{NEW} a good map", max_new_tokens=5, truncate=3)
    assert rest.token_ids == server.client.generate("a good map", max_new_tokens=5, truncate=3).token_ids


def test_other_fields_refuse_an_unknown_token(server: Server) -> None:
    for path, body in [
        ("/v1/completions", {"prompt": "a", "logit_bias": {str(VOCAB_SIZE): 1}}),
        ("/v1/completions", {"prompt": "a", "stop_token_ids": [VOCAB_SIZE]}),
    ]:
        response = server.client.post(path, body)
        assert response.status_code == 400, response.text
        assert f"token {VOCAB_SIZE}" in response.json()["error"]["message"]


def test_other_requests_are_not_affected(server: Server) -> None:
    alone = server.client.generate("The boats are past", max_new_tokens=100)
    refused = [lambda: server.client.post("/generate", {"inputs": TEXT})] * 8
    answers = server.client.together(
        [lambda: server.client.generate("The boats are past", max_new_tokens=100), *refused]
    )
    assert isinstance(answers[0], Answer) and answers[0].token_ids == alone.token_ids
    assert {answer.status_code for answer in answers[1:]} == {422}


def test_encoders_refuse_an_unknown_token(minilm: Path, tmp_path: Path) -> None:
    folder = with_another_token(minilm, tmp_path / "minilm", 30522)
    with Server("--model-id", folder, "--task", "embed") as server:
        for path, body, status in [
            ("/embed", {"inputs": TEXT}, 413),
            ("/embed", {"inputs": ["a map", TEXT]}, 413),
            ("/v1/embeddings", {"input": TEXT}, 400),
        ]:
            response = server.client.post(path, body)
            assert response.status_code == status, response.text
            assert f"token 30522 (`{NEW}`)" in response.text
        long = {"inputs": "map " * 400 + NEW, "truncate": True}
        assert server.client.post("/embed", long).status_code == 200
