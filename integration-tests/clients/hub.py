"""Runs huggingface_hub's clients against the server at argv[1]; prints their results as JSON. argv[2]: the task."""

import asyncio
import json
import sys
from typing import Any

from huggingface_hub import AsyncInferenceClient, InferenceClient

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def chats(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, client in {
        "by model": InferenceClient(model=url),
        "by base_url": InferenceClient(base_url=f"{url}/v1"),
    }.items():
        answer = client.chat_completion(QUESTION, max_tokens=20, temperature=0.0001)
        found[name] = answer.choices[0].message.content
        chunks = client.chat_completion(QUESTION, max_tokens=20, temperature=0.0001, stream=True)
        found[f"{name}, streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    client = InferenceClient(url)
    with_tools = client.chat_completion(QUESTION, max_tokens=8, tools=[WEATHER], tool_choice="auto")
    found["with tools"] = with_tools.choices[0].message.content
    found["TGI"] = client.text_generation("The capital of France is", max_new_tokens=3)
    found["asynchronous"] = asyncio.run(_asynchronous(url))
    return found


async def _asynchronous(url: str) -> str | None:
    async with AsyncInferenceClient(url) as client:
        answer = await client.chat_completion(QUESTION, max_tokens=20, temperature=0.0001)
    return answer.choices[0].message.content


def embeddings(url: str) -> dict[str, Any]:
    client = InferenceClient(url)
    vectors = client.feature_extraction("A cat sits on the mat.")
    cut = client.feature_extraction("hello " * 600, truncate=True)
    return {"shape": list(vectors.shape), "cut": list(cut.shape), "first": [float(x) for x in vectors[0][:3]]}


def masks(url: str) -> list[dict[str, Any]]:
    found = InferenceClient(url).fill_mask("The [MASK] sits.", top_k=2)
    return [{"token_str": one.token_str, "sequence": one.sequence, "score": one.score} for one in found]


def labels(url: str) -> list[dict[str, Any]]:
    # The client keeps the first entry of text-embeddings-inference's flat list.
    found: Any = InferenceClient(url).text_classification("It was great.")
    return [{"label": one.label, "score": one.score} for one in (found if isinstance(found, list) else [found])]


if __name__ == "__main__":
    tasks: dict[str, Any] = {"chats": chats, "embeddings": embeddings, "masks": masks, "labels": labels}
    print(json.dumps(tasks[sys.argv[2]](sys.argv[1])))
