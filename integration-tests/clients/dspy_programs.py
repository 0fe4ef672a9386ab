"""Runs dspy against the reciting server at argv[1], SmolLM2 at argv[2] and the encoder at argv[3]; prints JSON."""

import asyncio
import json
import sys
from typing import Any, Literal

import dspy
from pydantic import BaseModel, Field

QUESTION = "What is the weather in Paris?"


class Weather(dspy.Signature):
    """Tell the weather."""

    question: str = dspy.InputField()
    city: str = dspy.OutputField()
    days: int = dspy.OutputField()
    answer: str = dspy.OutputField()


class Day(BaseModel):
    rain: Literal["none", "some", "much"]
    degrees: int = Field(ge=-9, le=40)


class Forecast(dspy.Signature):
    """Forecast the weather."""

    question: str = dspy.InputField()
    city: Literal["Paris", "Rome"] = dspy.OutputField()
    is_sunny: bool = dspy.OutputField()
    today: Day = dspy.OutputField()


def model(url: str, **options: Any) -> Any:
    common: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": "unused", "cache": False, "num_retries": 0}
    return dspy.LM(options.pop("name", "openai/gpt-4o-mini"), **common | options)


def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


def fields(prediction: Any) -> dict[str, Any]:
    found = {name: prediction[name] for name in prediction.keys()}  # noqa: SIM118 - a prediction is no mapping
    return {name: value.model_dump() if isinstance(value, BaseModel) else value for name, value in found.items()}


def chat(url: str) -> dict[str, Any]:
    """Predictions from the answers that the default adapter reads."""
    found: dict[str, Any] = {}
    for kind in ("chat", "responses"):
        for engine in ("lm15", "litellm"):
            with dspy.context(lm=model(url, model_type=kind, engine=engine)):
                found[f"{kind}, {engine}"] = fields(dspy.Predict(Weather)(question=QUESTION))
    with dspy.context(lm=model(url)):
        found["async"] = fields(asyncio.run(dspy.Predict(Weather).acall(question=QUESTION)))
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        streaming = dspy.streamify(dspy.Predict(Weather), stream_listeners=[listener], async_streaming=False)
        chunks = list(streaming(question=QUESTION))
        texts = [chunk.chunk for chunk in chunks if isinstance(chunk, dspy.streaming.StreamResponse)]
        found["streamed"] = ["".join(texts), len(texts) > 1, fields(chunks[-1])]
    return found


def typed(url: str) -> dict[str, Any]:
    """Predictions of SmolLM2 with types that a schema enforces."""
    found: dict[str, Any] = {}
    for kind in ("chat", "responses"):
        for engine in ("lm15", "litellm"):
            options = {"model_type": kind, "engine": engine, "temperature": 0, "max_tokens": 200}
            with dspy.context(lm=model(url, **options), adapter=dspy.JSONAdapter()):
                found[f"{kind}, {engine}"] = fields(dspy.Predict(Forecast)(question=QUESTION))
    return found


def tools(url: str) -> list[Any]:
    """A call of a function in its native form."""
    signature = dspy.Signature("question, tools: list[dspy.Tool] -> calls: dspy.ToolCalls")
    with dspy.context(lm=model(url), adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        found = dspy.Predict(signature)(question=QUESTION, tools=[dspy.Tool(get_weather)])
    return [[call.name, call.args] for call in found.calls.tool_calls]


def text(url: str) -> str:
    lm = model(url, name="text-completion-openai/any", model_type="text", temperature=0, max_tokens=8, engine="litellm")
    return lm("The capital of France is")[0]


def overflow(url: str) -> list[str]:
    found = []
    for engine in ("lm15", "litellm"):
        try:
            model(url, engine=engine)("hello " * 20_000)
        except Exception as error:
            found.append(type(error).__name__)
    return found


def embed(url: str) -> list[int]:
    embedder = dspy.Embedder(
        "openai/text-embedding-3-small", api_base=f"{url}/v1", api_key="unused", encoding_format="float", caching=False
    )
    return list(embedder([f"text {number}" for number in range(300)]).shape)


def main(reciting: str, smollm2: str, encoder: str) -> dict[str, Any]:
    return {
        "chat": chat(reciting),
        "tools": tools(reciting),
        "typed": typed(smollm2),
        "text": text(smollm2),
        "overflow": overflow(smollm2),
        "embed": embed(encoder),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
