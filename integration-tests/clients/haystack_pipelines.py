"""Runs Haystack against the reciting server, SmolLM2, an encoder and a reranker at argv[1:5]; prints JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

from haystack import Document
from haystack.components.agents import Agent
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import tool
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from haystack_integrations.components.embedders.vllm import VLLMDocumentEmbedder, VLLMTextEmbedder
from haystack_integrations.components.generators.huggingface_api import HuggingFaceAPIChatGenerator
from haystack_integrations.components.generators.vllm import VLLMChatGenerator
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.vllm import VLLMRanker
from pydantic import BaseModel, ConfigDict, Field

QUESTION = [ChatMessage.from_user("What is the weather in Paris?")]
KEY = Secret.from_token("unused")
TEXTS = ["In the sky.", "On the mat.", "Nowhere."]


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


class Forecast(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=9)


def generators(url: str, **options: Any) -> dict[str, Any]:
    hub = {key: value for key, value in options.items() if key != "generation_kwargs"}
    return {
        "openai": OpenAIChatGenerator(api_key=KEY, api_base_url=f"{url}/v1", **options),
        "vllm": VLLMChatGenerator(model="any", api_base_url=f"{url}/v1", **options),
        "responses": OpenAIResponsesChatGenerator(api_key=KEY, api_base_url=f"{url}/v1", **options),
        "tgi": HuggingFaceAPIChatGenerator(
            api_type="text_generation_inference", api_params={"url": url}, token=None, **hub
        ),
    }


def conversations(url: str) -> dict[str, Any]:
    """A question, a call, its result and the answer: by hand, streamed, asynchronous, and by an agent."""
    found: dict[str, Any] = {}
    for name, generator in generators(url, tools=[get_weather]).items():
        (call,) = generator.run(QUESTION)["replies"]
        results = [
            ChatMessage.from_tool(tool_result=get_weather.invoke(**one.arguments), origin=one)
            for one in call.tool_calls
        ]
        (answer,) = generator.run([*QUESTION, call, *results])["replies"]
        found[name] = [
            [(one.tool_name, one.arguments) for one in call.tool_calls],
            answer.text,
            [call.meta.get("finish_reason"), answer.meta.get("finish_reason")],
        ]
        (twice,) = asyncio.run(generator.run_async(QUESTION))["replies"]
        found[f"{name}, async"] = [(one.tool_name, one.arguments) for one in twice.tool_calls]
        agent = Agent(chat_generator=generator, tools=[get_weather])
        found[f"{name}, agent"] = agent.run(messages=QUESTION)["last_message"].text
    chunks: list[Any] = []
    for name, generator in generators(url, tools=[get_weather], streaming_callback=chunks.append).items():
        chunks.clear()
        agent = Agent(chat_generator=generator, tools=[get_weather], streaming_callback=chunks.append)
        answer = agent.run(messages=QUESTION)["last_message"]
        found[f"{name}, streamed"] = [answer.text, len([chunk for chunk in chunks if chunk.content]) > 1]
    return found


def structured(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    formats = {"openai": "response_format", "vllm": "response_format", "responses": "text_format"}
    for name, field in formats.items():
        limit = "max_output_tokens" if name == "responses" else "max_tokens"
        # This class passes the format on as it is.
        schema = {"name": "Forecast", "schema": Forecast.model_json_schema()}
        form: Any = {"type": "json_schema", "json_schema": schema} if name == "vllm" else Forecast
        options: Any = {"generation_kwargs": {field: form, "temperature": 0, limit: 60}}
        (reply,) = generators(url, **options)[name].run(QUESTION)["replies"]
        found[name] = Forecast.model_validate_json(reply.text).model_dump()
    return found


def overflow(url: str) -> list[str]:
    found = []
    for generator in generators(url).values():
        try:
            generator.run([ChatMessage.from_user("hello " * 20_000)])
        except Exception as error:
            found.append(type(error).__name__)
    return found


def embeddings(url: str) -> dict[str, Any]:
    """The vector of a text by each class, and those of documents."""
    documents = [Document(content=text) for text in [*TEXTS, "hello " * 600]]
    tei: dict[str, Any] = {
        "api_type": "text_embeddings_inference",
        "api_params": {"url": url},
        "token": None,
        "normalize": True,
    }
    vllm: dict[str, Any] = {"model": "any", "api_base_url": f"{url}/v1"}
    openai: dict[str, Any] = {"api_key": KEY, "api_base_url": f"{url}/v1"}
    cut = {"truncate_prompt_tokens": 256, "truncation_side": "right"}
    texts = {
        "tei": HuggingFaceAPITextEmbedder(**tei),
        "vllm": VLLMTextEmbedder(**vllm, extra_parameters=cut),
        "openai": OpenAITextEmbedder(**openai),
    }
    many = {
        "tei": HuggingFaceAPIDocumentEmbedder(**tei),
        "vllm": VLLMDocumentEmbedder(**vllm, extra_parameters=cut),
        "openai": OpenAIDocumentEmbedder(**openai),
    }
    found: dict[str, Any] = {}
    for name, embedder in texts.items():
        vector = embedder.run("On the mat.")["embedding"]
        vectors = [document.embedding for document in many[name].run(documents)["documents"]]
        found[name] = [vector[:3], vectors[1][:3], [len(one) for one in vectors]]
    return found


def ranks(url: str) -> dict[str, Any]:
    documents = [Document(content=text) for text in TEXTS]
    found = {}
    for name, ranker in {
        "tei": HuggingFaceTEIRanker(url=url, top_k=2),
        "vllm": VLLMRanker(model="any", api_base_url=f"{url}/v1", top_k=2),
    }.items():
        ranked = ranker.run(query="Where is the cat?", documents=documents)["documents"]
        found[name] = [[TEXTS.index(document.content), document.score] for document in ranked]
    return found


def main(reciting: str, smollm2: str, encoder: str, reranker: str) -> dict[str, Any]:
    return {
        "conversations": conversations(reciting),
        "structured": structured(smollm2),
        "overflow": overflow(smollm2),
        "embeddings": embeddings(encoder),
        "ranks": ranks(reranker),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
