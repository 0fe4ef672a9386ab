"""Runs instructor against the reciting server at argv[1] and SmolLM2 at argv[2]; prints JSON."""

import asyncio
import json
import sys
from collections.abc import Iterable
from typing import Any, Literal

import anthropic
import instructor
import openai
from instructor.core import InstructorRetryException
from pydantic import BaseModel, Field, field_validator

MESSAGES: list[Any] = [{"role": "user", "content": "Anna is 30 years old and likes red."}]
#: Modes in which the server holds the answer to the schema.
ENFORCED = ("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS")


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=20)


class Person(BaseModel):
    """A person."""

    name: Literal["Anna", "Bert"]
    age: int = Field(ge=0, le=120)
    colour: Literal["red", "green", "blue"] | None
    pets: list[Pet] = Field(min_length=1, max_length=2)


class NeverRight(BaseModel):
    name: Literal["Anna", "Bert"]
    age: int = Field(ge=0, le=120)

    @field_validator("age")
    @classmethod
    def refuse(cls, age: int) -> int:
        raise ValueError(f"{age} is too young")


class get_weather(BaseModel):
    """Tells the weather."""

    city: str


def client(url: str, mode: str) -> Any:
    raw = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    return instructor.from_openai(raw, mode=instructor.Mode[mode])


def common(mode: str) -> dict[str, Any]:
    limit = "max_output_tokens" if mode == "RESPONSES_TOOLS" else "max_tokens"
    return {"model": "gpt-4o", "messages": MESSAGES, "temperature": 0, limit: 200, "max_retries": 0}


def modes(url: str) -> dict[str, Any]:
    """A person by each mode: whole, with its usage, and in parts while the answer comes."""
    found = {}
    for name in ENFORCED:
        made, whole = client(url, name).create_with_completion(response_model=Person, **common(name))
        parts = list(client(url, name).create_partial(response_model=Person, **common(name)))
        found[name] = [made.model_dump(), whole.usage.total_tokens > 0, len(parts) > 2, parts[-1].model_dump()]
    return found


def told(url: str) -> dict[str, Any]:
    """A person by the modes that tell the model of the schema in words."""
    found = {}
    for name in ("JSON", "MD_JSON"):
        found[name] = client(url, name).create(response_model=Person, **common(name)).model_dump()
    return found


def parallel(url: str) -> list[Any]:
    """Calls that the model makes of itself."""
    messages = [{"role": "user", "content": "What is the weather in Paris and Rome?"}]
    made = client(url, "PARALLEL_TOOLS").create(
        response_model=Iterable[get_weather | Pet], messages=messages, model="gpt-4o", max_retries=0
    )
    return [one.model_dump() for one in made]


def retries(url: str) -> list[Any]:
    """Messages of the requests that follow answers which the validator refuses."""
    requests: list[Any] = []
    made = client(url, "TOOLS")
    made.on("completion:kwargs", lambda *_, **kwargs: requests.append(len(kwargs["messages"])))
    try:
        made.create(response_model=NeverRight, **common("TOOLS") | {"max_retries": 2})
    except InstructorRetryException as error:
        return [*requests, error.n_attempts]
    raise AssertionError("the validator refuses everything")


async def asynchronous(url: str) -> dict[str, Any]:
    raw = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    made = await instructor.from_openai(raw).create(response_model=Person, **common("TOOLS"))
    return made.model_dump()


def by_anthropic(url: str) -> dict[str, Any]:
    raw = anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0)
    made = instructor.from_anthropic(raw, mode=instructor.Mode.ANTHROPIC_TOOLS)
    person = made.create(
        response_model=Person, messages=MESSAGES, model="claude-sonnet-4-5", max_tokens=200, max_retries=0
    )
    return person.model_dump()


def overflow(url: str) -> str:
    messages = [{"role": "user", "content": "hello " * 20_000}]
    try:
        client(url, "TOOLS").create(response_model=Person, **common("TOOLS") | {"messages": messages})
    except InstructorRetryException as error:
        return str(error)
    raise AssertionError("the prompt is too long")


def main(reciting: str, smollm2: str) -> dict[str, Any]:
    return {
        "modes": modes(smollm2),
        "told": told(reciting),
        "parallel": parallel(reciting),
        "retries": retries(smollm2),
        "async": asyncio.run(asynchronous(smollm2)),
        "anthropic": by_anthropic(smollm2),
        "overflow": overflow(smollm2),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
