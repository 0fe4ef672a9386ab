"""Runs langchain-openai against the server at argv[1] and the encoder at argv[2]; prints its results as JSON."""

import json
import sys
from typing import Any

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

QUESTION = "What is the capital of France?"


def weather(city: str) -> str:
    """Tells the weather."""
    return f"sunny in {city}"


def main(url: str, encoder_url: str) -> dict[str, Any]:
    common: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "unused", "max_retries": 0}
    chat = ChatOpenAI(model="gpt-4o", temperature=0, **common)
    found: dict[str, Any] = {"chat": chat.invoke(QUESTION).content}
    found["streamed"] = "".join(str(chunk.content) for chunk in chat.stream(QUESTION))
    found["with tools"] = chat.bind_tools([weather]).invoke(QUESTION).content
    tops = ChatOpenAI(model="gpt-4o", temperature=0, max_tokens=2, logprobs=True, top_logprobs=20, **common)
    content = tops.invoke(QUESTION).response_metadata["logprobs"]["content"]
    found["top_logprobs"] = [len(entry["top_logprobs"]) for entry in content]
    try:
        chat.invoke("hello " * 20_000)
    except Exception as error:
        found["too long"] = [kind.__name__ for kind in type(error).__mro__]
    completions = OpenAI(model="gpt-3.5-turbo-instruct", temperature=0, max_tokens=3, **common)
    found["batch"] = completions.batch([f"{number}, {number + 1}," for number in range(12)])
    found["stops"] = completions.invoke("1, 2,", stop=["\n", ".", "</s>", "<|im_end|>", "Question:", "4"])
    embeddings = OpenAIEmbeddings(
        model="text-embedding-3-small",
        base_url=f"{encoder_url}/v1",
        api_key="unused",
        check_embedding_ctx_length=False,
    )
    texts = [f"text {number}" for number in range(60)] + ["hello " * 600]
    found["embeddings"] = [len(vector) for vector in embeddings.embed_documents(texts)]
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
