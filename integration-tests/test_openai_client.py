"""OpenAI's own Python client works unchanged, errors included."""

from collections.abc import Iterator

import openai
import pytest
from support.server import Server


@pytest.fixture(scope="module")
def client(smollm2_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2_server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_a_chat(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
    )
    assert reply.choices[0].message.content == "The capital of France is Paris."
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 8


def test_a_chat_stream(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The capital of France is Paris."
    assert chunks[-1].usage is not None


def test_a_completion_of_token_ids(client: openai.OpenAI, model: str, smollm2_server: Server) -> None:
    ids = [token["id"] for token in smollm2_server.client.ok("/tokenize", {"inputs": "The capital of France is"})]
    by_ids = client.completions.create(model=model, prompt=ids, max_tokens=4, temperature=0)
    by_text = client.completions.create(model=model, prompt="The capital of France is", max_tokens=4, temperature=0)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.usage is not None
    assert by_ids.usage.prompt_tokens == len(ids)


def test_errors_are_the_clients_own(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], temperature=-1)
    assert "temperature" in caught.value.message
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], temperature=-1, stream=True
        )
