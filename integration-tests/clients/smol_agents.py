"""Runs smolagents against the reciting server at argv[1] and SmolLM2 at argv[2]; prints JSON."""

import json
import sys
from collections.abc import Callable
from typing import Any

import smolagents
from smolagents import CodeAgent, InferenceClientModel, LogLevel, OpenAIModel, ToolCallingAgent, tool

TASK = "What is the weather in Paris?"
ASKED: list[str] = []


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city.

    Args:
        city: Name of the city.
    """
    ASKED.append(city)
    return f"sunny in {city}"


MODELS: dict[str, Callable[[str], Any]] = {
    "openai": lambda url: OpenAIModel("any", api_base=f"{url}/v1", api_key="unused"),
    "hub": lambda url: InferenceClientModel(model_id=url),
    "hub, base_url": lambda url: InferenceClientModel(model_id=None, base_url=url),
}


def agents(model: Any) -> dict[str, Any]:
    """The answer of agents that call tools by JSON and by code, as a whole and as a stream."""
    found: dict[str, Any] = {}
    for name, kind in {"tools": ToolCallingAgent, "code": CodeAgent}.items():
        for streams in (False, True):
            ASKED.clear()
            agent: Any = kind(
                tools=[get_weather], model=model, stream_outputs=streams, max_steps=4, verbosity_level=LogLevel.OFF
            )
            result = agent.run(TASK, return_full_result=True)
            usage = result.token_usage
            found[f"{name}, {streams}"] = [result.state, result.output, list(ASKED), usage.output_tokens > 0]
    return found


def structured(url: str) -> list[str]:
    """An answer of SmolLM2 in the format that CodeAgent uses with use_structured_outputs_internally."""
    model = OpenAIModel("any", api_base=f"{url}/v1", api_key="unused", temperature=0, max_tokens=150)
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": TASK}]}]
    thought = {
        "type": "json_schema",
        "json_schema": {
            "name": "ThoughtAndCode",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "thought": {"type": "string", "maxLength": 20},
                    "code": {"type": "string", "maxLength": 20},
                },
                "required": ["thought", "code"],
                "additionalProperties": False,
            },
        },
    }
    answered = model.generate(messages, response_format=thought)
    return sorted(json.loads(answered.content))


def overflow(url: str) -> str:
    agent = ToolCallingAgent(tools=[], model=MODELS["openai"](url), verbosity_level=LogLevel.OFF)
    try:
        agent.run("hello " * 20_000)
    except smolagents.AgentGenerationError as error:
        return type(error.__cause__).__name__
    raise AssertionError("the prompt is too long")


def main(reciting: str, smollm2: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: agents(make(reciting)) for name, make in MODELS.items()}
    return found | {"structured": structured(smollm2), "overflow": overflow(smollm2)}


if __name__ == "__main__":
    # The library's own output may end within a line.
    print("\n" + json.dumps(main(*sys.argv[1:])))
