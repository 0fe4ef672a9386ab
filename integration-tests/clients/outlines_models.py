"""Runs outlines against the server at argv[1], in the form of each server that it knows; prints JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

import huggingface_hub
import openai
import outlines
from outlines.types import CFG, Regex
from pydantic import BaseModel, ConfigDict, Field

PROMPT = "Is the sky blue?"
COLOURS = Literal["red", "green", "blue"]
ARITHMETIC = 'start: term (("+" | "-") term)?\nterm: /[0-9]{1,2}/\n'
EBNF = 'root ::= term ("+" term)?\nterm ::= [0-9]{1,2}\n'


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)
    colours: list[COLOURS] = Field(min_length=1, max_length=2)


#: Types by name. The limit keeps the answers of a small model short.
TYPES: dict[str, Any] = {
    "choice": COLOURS,
    "integer": int,
    "regex": Regex(r"[A-Z]{2}-[0-9]{3}"),
    "pattern": outlines.types.date,
    "list": list[COLOURS],
    "person": Person,
    "nothing": None,
}


def models(url: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Models and the arguments of a call."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    chat = {"temperature": 0, "max_tokens": 100}
    tgi = {"max_new_tokens": 100, "return_full_text": False}
    return {
        "vllm": (outlines.from_vllm(client, "any"), chat),
        "sglang": (outlines.from_sglang(client, "any"), chat),
        "openai": (outlines.from_openai(client, "gpt-4o"), chat),
        "tgi": (outlines.from_tgi(huggingface_hub.InferenceClient(url)), tgi),
    }


def answers(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (model, arguments) in models(url).items():
        for kind, output in TYPES.items():
            if name == "openai" and kind not in ("person", "nothing"):
                continue  # outlines refuses these for OpenAI itself.
            if name == "tgi" and kind == "nothing":
                continue  # Streams of this API have the text of special tokens.
            whole = model(PROMPT, output, **arguments)
            streamed = "".join(model.stream(PROMPT, output, **arguments))
            found[f"{name}, {kind}"] = [whole, streamed]
    vllm, arguments = models(url)["vllm"]
    found["vllm, grammar"] = vllm(PROMPT, CFG(ARITHMETIC), **arguments)
    sglang, arguments = models(url)["sglang"]
    found["sglang, grammar"] = sglang(PROMPT, CFG(EBNF), **arguments)
    found["vllm, n"] = vllm(PROMPT, COLOURS, n=2, **arguments)
    return found


async def asynchronous(url: str) -> dict[str, Any]:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    vllm = outlines.from_vllm(client, "any")
    tgi = outlines.from_tgi(huggingface_hub.AsyncInferenceClient(url))
    found = {
        "vllm": await vllm(PROMPT, COLOURS, temperature=0),
        "tgi": await tgi(PROMPT, COLOURS, return_full_text=False),
    }
    found["streamed"] = "".join([text async for text in vllm.stream(PROMPT, COLOURS, temperature=0)])
    return found


def main(url: str) -> dict[str, Any]:
    return {"answers": answers(url), "async": asyncio.run(asynchronous(url))}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
