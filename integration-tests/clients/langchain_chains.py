"""Runs langchain-openai and langchain-huggingface against the reciting server at argv[1], SmolLM2 at argv[2] and the
encoder at argv[3]; prints JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

QUESTION = "What is the weather in Paris?"
CAPITAL = "What is the capital of France?"


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


@tool
def choose_city(city: Literal["Paris", "Rome"]) -> str:
    """Chooses a city."""
    return city


class Forecast(BaseModel):
    """A forecast."""

    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=9)
    rain: list[Literal["none", "some", "much"]] = Field(min_length=1, max_length=2)


def chats(url: str, **options: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"model": "gpt-4o", "base_url": f"{url}/v1", "api_key": "unused", "max_retries": 0}
    return {
        "chat": ChatOpenAI(**common | options),
        "responses": ChatOpenAI(use_responses_api=True, **common | options),
        "hub": ChatHuggingFace(llm=HuggingFaceEndpoint(endpoint_url=url), **options),
    }


def text(message: Any) -> str:
    return message.text if isinstance(message.text, str) else message.text()


async def tools(url: str) -> dict[str, Any]:
    """A call, its result and the answer; the call once more as a stream and asynchronously."""
    found: dict[str, Any] = {}
    for name, chat in chats(url).items():
        bound = chat.bind_tools([get_weather])
        messages: list[Any] = [HumanMessage(QUESTION)]
        called = bound.invoke(messages)
        (call,) = called.tool_calls
        messages += [called, ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])]
        usage = called.usage_metadata
        found[name] = [call["name"], call["args"], text(bound.invoke(messages)), usage["output_tokens"] > 0]
        whole: Any = None
        for chunk in bound.stream([HumanMessage(QUESTION)]):
            whole = chunk if whole is None else whole + chunk
        found[f"{name}, streamed"] = [[one["name"], one["args"]] for one in whole.tool_calls]
        later = await bound.ainvoke([HumanMessage(f"{QUESTION} And in Rome?")])
        found[f"{name}, async"] = [one["args"] for one in later.tool_calls]
    return found


def forced(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, chat in chats(url, temperature=0.01, max_tokens=80).items():
        for choice in ("any", "choose_city"):
            if name == "hub" and choice == "any":
                continue  # The class allows "auto" or a name.
            # The class leaves several calls to the model.
            call = chat.bind_tools([choose_city], tool_choice=choice).invoke(QUESTION).tool_calls[0]
            found[f"{name}, {choice}"] = [call["name"], call["args"]]
    return found


def structured(url: str, reciting: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, chat in chats(url, temperature=0.01, max_tokens=400).items():
        for method in ("json_schema", "function_calling"):
            schema: Any = Forecast.model_json_schema() if name == "hub" else Forecast
            made = chat.with_structured_output(schema, method=method).invoke(QUESTION)
            found[f"{name}, {method}"] = made.model_dump() if isinstance(made, BaseModel) else made
    for name, chat in chats(reciting).items():
        # This mode knows no schema: the prompt has it.
        found[f"{name}, json_mode"] = chat.with_structured_output(None, method="json_mode").invoke("Use json_schema.")
    strict = chats(url, temperature=0, max_tokens=200)["chat"].with_structured_output(
        Forecast, method="function_calling", strict=True, include_raw=True
    )
    found["strict"] = strict.invoke(QUESTION)["parsed"].model_dump()
    parts = list(
        chats(url, temperature=0)["chat"].with_structured_output(Forecast.model_json_schema()).stream(QUESTION)
    )
    found["streamed"] = [len(parts) > 1, parts[-1]]
    return found


async def hub(url: str, encoder: str) -> dict[str, Any]:
    """Another class of langchain-huggingface, and embeddings."""
    endpoint = HuggingFaceEndpoint(endpoint_url=url, max_new_tokens=3, temperature=0.01)
    # The class of langchain-huggingface takes no URL.
    embeddings = OpenAIEmbeddings(
        model="any", base_url=f"{encoder}/v1", api_key="unused", check_embedding_ctx_length=False
    )
    chat = ChatHuggingFace(llm=HuggingFaceEndpoint(endpoint_url=url), temperature=0.01)
    return {
        "text": endpoint.invoke("The capital of France is"),
        "text, streamed": "".join(endpoint.stream("The capital of France is")),
        "text, async": await endpoint.ainvoke("The capital of France is"),
        "chat": text(chat.invoke(CAPITAL)),
        "chat, streamed": "".join(text(chunk) for chunk in chat.stream(CAPITAL)),
        "chat, async": text(await chat.ainvoke(CAPITAL)),
        "embeddings": [vector[:3] for vector in embeddings.embed_documents(["On the mat."] * 30)],
    }


def main(reciting: str, smollm2: str, encoder: str) -> dict[str, Any]:
    return {
        "tools": asyncio.run(tools(reciting)),
        "forced": forced(smollm2),
        "structured": structured(smollm2, reciting),
        "hub": asyncio.run(hub(smollm2, encoder)),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
