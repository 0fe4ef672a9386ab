"""Runs pydantic-ai against the reciting server at argv[1] and SmolLM2 at argv[2]; prints JSON."""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.huggingface import HuggingFaceModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.huggingface import HuggingFaceProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.vllm import VLLMProvider


class Loose(BaseModel, extra="allow"):
    """Any object."""


class Forecast(BaseModel):
    """Without bounds of numbers and lists, which the library leaves out of strict schemas."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2, 3]
    rain: Literal["none", "some", "much"]


MODELS: dict[str, Callable[[str], Any]] = {
    "chat": lambda url: OpenAIChatModel("gpt-4o", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="unused")),
    "vllm": lambda url: OpenAIChatModel("any", provider=VLLMProvider(base_url=f"{url}/v1", api_key="unused")),
    "responses": lambda url: OpenAIResponsesModel(
        "gpt-4o", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="unused")
    ),
    "anthropic": lambda url: AnthropicModel(
        "claude-sonnet-4-5", provider=AnthropicProvider(base_url=url, api_key="unused")
    ),
    "huggingface": lambda url: HuggingFaceModel("any", provider=HuggingFaceProvider(base_url=url, api_key="unused")),
}


async def conversation(model: Any) -> dict[str, Any]:
    """A question, the calls of a function, and the answer: as a whole and as a stream."""
    asked: list[str] = []
    agent = Agent(model, instructions="Answer in few words.")

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Tells the weather of a city."""
        asked.append(city)
        return f"sunny in {city}"

    result = await agent.run("What is the weather in Paris?")
    found: dict[str, Any] = {"whole": [result.output, list(asked)]}
    kinds = [
        part.part_kind
        for message in result.all_messages()
        for part in message.parts
        if isinstance(message, ModelRequest | ModelResponse)
    ]
    found["parts"] = kinds
    found["finish"] = [m.finish_reason for m in result.all_messages() if isinstance(m, ModelResponse)]
    usage = result.usage
    found["usage"] = [usage.requests, usage.tool_calls, usage.input_tokens > 0, usage.output_tokens > 0]
    asked.clear()
    await agent.run("What is the weather in Paris and Rome?")
    found["two calls"] = asked.copy()
    async with agent.run_stream("What is the weather in Paris?") as stream:
        texts = [text async for text in stream.stream_text(debounce_by=None)]
        found["streamed"] = [texts[-1], len(texts) > 1, stream.usage.output_tokens > 0]
    follow = await agent.run("Thanks. And now?", message_history=result.all_messages())
    found["followed"] = follow.output
    return found


async def structured(model: Any, name: str) -> dict[str, Any]:
    """A typed output in each of the modes. A prompted one gets no grammar but that of any JSON object."""
    found: dict[str, Any] = {}
    # A small model may make one call after the other. Some classes leave out the temperature for some models.
    settings: Any = {"temperature": 0, "max_tokens": 300, "parallel_tool_calls": False}
    kinds: dict[str, Any] = {"default": Forecast, "tool": ToolOutput(Forecast), "native": NativeOutput(Forecast)}
    if name == "huggingface":
        del kinds["native"]  # The class does not have it.
    for kind, output in kinds.items():
        agent: Any = Agent(model, output_type=output, model_settings=settings, retries=0)
        result = await agent.run("Forecast for Paris, please.")
        found[kind] = result.output.model_dump()
        async with agent.run_stream("Forecast for Paris, please.") as stream:
            async for part in stream.stream_output(debounce_by=None):
                found[f"{kind}, streamed"] = part.model_dump()
    union: Any = Agent(model, output_type=[Forecast, Literal["unknown"]], model_settings=settings, retries=0)
    found["union"] = type((await union.run("Forecast for Paris, please.")).output).__name__
    return found


async def prompted(model: Any) -> Any:
    agent = Agent(
        model,
        output_type=PromptedOutput(Loose),
        model_settings={"temperature": 0, "max_tokens": 200},
        retries=0,
    )
    return (await agent.run('Answer with {"a": 1}.')).output.model_dump()


async def overflow(model: Any) -> list[Any]:
    try:
        await Agent(model).run("hello " * 20_000)
    except ModelHTTPError as error:
        return [type(error).__name__, error.status_code]
    raise AssertionError("the prompt is too long")


async def main(reciting: str, smollm2: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, make in MODELS.items():
        found[name] = {
            "conversation": await conversation(make(reciting)),
            "structured": await structured(make(smollm2), name),
            "overflow": await overflow(make(smollm2)),
        }
    found["prompted"] = [await prompted(MODELS[name](smollm2)) for name in ("chat", "vllm", "responses")]
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
