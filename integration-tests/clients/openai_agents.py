"""Runs the OpenAI Agents SDK against the reciting server at argv[1] and SmolLM2 at argv[2]; prints JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

import agents
import openai
from agents import Agent, ModelSettings, Runner, SQLiteSession, function_tool
from pydantic import BaseModel, Field

ASKED: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    ASKED.append(city)
    return f"sunny in {city}"


class Forecast(BaseModel):
    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=9)
    rain: list[Literal["none", "some", "much"]] = Field(min_length=1, max_length=2)


async def conversation(model: Any) -> dict[str, Any]:
    """A question, the calls of a function, and the answer: as a whole, as a stream, and with a session after it."""
    agent = Agent(name="Weather", instructions="Answer in few words.", model=model, tools=[get_weather])
    found: dict[str, Any] = {}
    ASKED.clear()
    result = await Runner.run(agent, "What is the weather in Paris?")
    found["whole"] = [result.final_output, [type(item).__name__ for item in result.new_items], list(ASKED)]
    usage = result.context_wrapper.usage
    found["usage"] = [usage.requests, usage.total_tokens - usage.input_tokens - usage.output_tokens]
    ASKED.clear()
    await Runner.run(agent, "What is the weather in Paris and Rome?")
    found["two calls"] = list(ASKED)

    streamed = Runner.run_streamed(agent, "What is the weather in Paris?")
    deltas, kinds = [], []
    async for event in streamed.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            deltas.append(event.data.delta)
        elif event.type == "run_item_stream_event":
            kinds.append(event.name)
    found["streamed"] = ["".join(deltas), len(deltas) > 1, kinds, streamed.final_output]

    session = SQLiteSession("conversation")
    await Runner.run(agent, "Hello.", session=session)
    again = await Runner.run(agent, "What is the weather in Paris?", session=session)
    found["session"] = [again.final_output, len(await session.get_items())]
    required = agent.clone(model_settings=ModelSettings(tool_choice="required"))
    found["required"] = (await Runner.run(required, "What is the weather in Paris?")).final_output
    return found


async def handoff(model: Any) -> list[str]:
    weather = Agent(name="Weather agent", model=model, tools=[get_weather])
    triage = Agent(name="Triage", model=model, handoffs=[weather])
    result = await Runner.run(triage, "What is the weather in Paris?")
    return [result.last_agent.name, result.final_output]


async def structured(client: openai.AsyncOpenAI) -> dict[str, Any]:
    """An answer with a type, from both APIs."""
    found = {}
    for name, model in {
        "responses": agents.OpenAIResponsesModel("any", client),
        "chat": agents.OpenAIChatCompletionsModel("any", client),
    }.items():
        agent = Agent(
            name="Forecast",
            model=model,
            output_type=Forecast,
            model_settings=ModelSettings(temperature=0, max_tokens=100),
        )
        result = await Runner.run(agent, "Forecast for Paris, please.")
        found[name] = result.final_output.model_dump()
    return found


async def overflow(client: openai.AsyncOpenAI) -> list[str]:
    agent = Agent(name="Long", model=agents.OpenAIResponsesModel("any", client))
    try:
        await Runner.run(agent, "hello " * 20_000)
    except openai.BadRequestError as error:
        return [type(error).__name__, str(error.code)]
    raise AssertionError("the prompt is too long")


async def main(reciting: str, smollm2: str) -> dict[str, Any]:
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{reciting}/v1", api_key="unused", max_retries=0)
    # By default an agent uses Responses.
    agents.set_default_openai_client(client)
    real = openai.AsyncOpenAI(base_url=f"{smollm2}/v1", api_key="unused", max_retries=0)
    chat = agents.OpenAIChatCompletionsModel("any", client)
    return {
        "responses": await conversation("gpt-5"),
        "chat": await conversation(chat),
        "handoff": [await handoff("gpt-5"), await handoff(chat)],
        "structured": await structured(real),
        "overflow": await overflow(real),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
