"""Runs litellm against the server at argv[1], the encoder at argv[2] and the reranker at argv[3]; prints JSON."""

import json
import sys
from typing import Any

import litellm

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def main(url: str, encoder_url: str, reranker_url: str) -> dict[str, Any]:
    litellm.suppress_debug_info = True
    common: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": "unused", "max_retries": 0}
    found: dict[str, Any] = {}
    for model in ("openai/gpt-4o", "hosted_vllm/any/name"):
        answer = litellm.completion(model=model, messages=QUESTION, temperature=0, **common)
        found[model] = answer.choices[0].message.content
        chunks = litellm.completion(model=model, messages=QUESTION, temperature=0, stream=True, **common)
        found[f"{model}, streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    for name, extra in {"prompt": {}, "answer": {"max_tokens": 10**6}}.items():
        try:
            content = "hello " * (20_000 if name == "prompt" else 1)
            litellm.completion(model="openai/m", messages=[{"role": "user", "content": content}], **extra, **common)
        except Exception as error:
            found[f"too long: {name}"] = type(error).__name__
    embedding = litellm.embedding(
        model="openai/text-embedding-3-small",
        input=[f"text {number}" for number in range(40)],
        api_base=f"{encoder_url}/v1",
        api_key="unused",
        encoding_format="float",
    )
    found["embeddings"] = [len(entry["embedding"]) for entry in embedding.data]
    ranked = litellm.rerank(
        model="hosted_vllm/reranker",
        query="Where is the cat?",
        documents=["In the sky.", "On the mat.", "Nowhere."],
        top_n=2,
        api_base=reranker_url,
        api_key="unused",
    )
    found["ranked"] = [[result["index"], result["relevance_score"]] for result in ranked.results]
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
