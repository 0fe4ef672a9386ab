"""Runs LlamaIndex against the reciting server, SmolLM2, an encoder and a reranker at argv[1:5]; prints JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.llms.huggingface_api import HuggingFaceInferenceAPI
from llama_index.llms.openai_like import OpenAILike
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from pydantic import BaseModel, Field

QUESTION = "What is the weather in Paris?"
CAPITAL = [ChatMessage(role="user", content="What is the capital of France?")]
TEXTS = ["In the sky.", "On the mat.", "Nowhere."]


class Forecast(BaseModel):
    """A forecast."""

    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=9)
    rain: list[Literal["none", "some", "much"]] = Field(min_length=1, max_length=2)


def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


def openai_like(url: str, **options: Any) -> OpenAILike:
    common: dict[str, Any] = {"model": "any", "api_base": f"{url}/v1", "api_key": "unused", "max_retries": 0}
    common |= {"is_chat_model": True, "is_function_calling_model": True, "context_window": 8192}
    return OpenAILike(**common | options)


async def chats(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    llms = {
        "openai": openai_like(url, temperature=0),
        "hub": HuggingFaceInferenceAPI(model_name=url, temperature=0.01),
    }
    for name, llm in llms.items():
        found[name] = llm.chat(CAPITAL).message.content
        found[f"{name}, streamed"] = "".join(chunk.delta or "" for chunk in llm.stream_chat(CAPITAL))
        found[f"{name}, async"] = (await llm.achat(CAPITAL)).message.content
        found[f"{name}, async, streamed"] = await streamed(llm)
    text = openai_like(url, is_chat_model=False, is_function_calling_model=False, temperature=0, max_tokens=3)
    found["complete"] = text.complete("The capital of France is").text
    found["complete, streamed"] = "".join(
        chunk.delta or "" for chunk in text.stream_complete("The capital of France is")
    )
    return found


async def streamed(llm: Any) -> str:
    return "".join([chunk.delta or "" async for chunk in await llm.astream_chat(CAPITAL)])


async def tools(url: str) -> dict[str, Any]:
    tool = FunctionTool.from_defaults(get_weather)
    llm = openai_like(url)
    response = llm.chat_with_tools([tool], user_msg=QUESTION)
    (call,) = llm.get_tool_calls_from_response(response)
    found: dict[str, Any] = {"call": [call.tool_name, call.tool_kwargs]}
    found["called"] = llm.predict_and_call([tool], user_msg=QUESTION).response
    required = llm.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    found["required"] = [one.tool_kwargs for one in llm.get_tool_calls_from_response(required)]
    pieces = list(llm.stream_chat_with_tools([tool], user_msg=QUESTION))
    found["streamed"] = [one.tool_kwargs for one in llm.get_tool_calls_from_response(pieces[-1])]
    for streams in (True, False):
        agent = FunctionAgent(tools=[tool], llm=llm, streaming=streams, system_prompt="Answer in few words.")
        found[f"agent, {streams}"] = str(await agent.run(QUESTION))
    return found


def structured(url: str) -> dict[str, Any]:
    """A typed answer by a call that is required, and by a schema."""
    found = {}
    for name, by_schema in {"call": False, "schema": True}.items():
        llm = openai_like(url, temperature=0, max_tokens=200, should_use_structured_outputs=by_schema)
        made: Any = llm.as_structured_llm(Forecast).complete(QUESTION).raw
        found[name] = made.model_dump()
    asked = [ChatMessage(role="user", content=QUESTION)]
    # With calls, the library leaves it to the model whether it calls when it streams.
    llm = openai_like(url, temperature=0, max_tokens=200, should_use_structured_outputs=True)
    last: Any = list(llm.as_structured_llm(Forecast).stream_chat(asked))[-1].raw
    found["streamed"] = last.model_dump()
    return found


def overflow(url: str) -> str:
    try:
        openai_like(url).complete("hello " * 20_000)
    except Exception as error:
        return type(error).__name__
    raise AssertionError("the prompt is too long")


def embeddings(url: str) -> dict[str, Any]:
    found = {}
    for name, model in {
        "openai": OpenAILikeEmbedding(model_name="any", api_base=f"{url}/v1", api_key="unused"),
        "tei": TextEmbeddingsInference(model_name="any", base_url=url),
    }.items():
        vectors = model.get_text_embedding_batch([*TEXTS, "hello " * 600] * 6)
        found[name] = [model.get_text_embedding(TEXTS[1])[:3], vectors[1][:3], [len(one) for one in vectors]]
    return found


def ranks(url: str) -> list[Any]:
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranker = TextEmbeddingInference(base_url=url, top_n=2, model_name="any")
    return [[TEXTS.index(node.text), node.score] for node in ranker.postprocess_nodes(nodes, query_str="Where?")]


def main(reciting: str, smollm2: str, encoder: str, reranker: str) -> dict[str, Any]:
    return {
        "chats": asyncio.run(chats(smollm2)),
        "tools": asyncio.run(tools(reciting)),
        "structured": structured(smollm2),
        "overflow": overflow(smollm2),
        "embeddings": embeddings(encoder),
        "ranks": ranks(reranker),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
