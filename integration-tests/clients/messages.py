"""Runs the anthropic package against the server at argv[1]; prints JSON."""

import asyncio
import json
import sys
from typing import Any

import anthropic

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
#: The package has no parameters of sampling of its own.
COMMON: dict[str, Any] = {"model": "claude-sonnet-4-5", "max_tokens": 16_000, "extra_body": {"temperature": 0}}
TOOL: Any = {
    "name": "weather",
    "description": "Tells the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def sync(client: anthropic.Anthropic) -> dict[str, Any]:
    message = client.messages.create(messages=QUESTION, **COMMON)
    found: dict[str, Any] = {
        "whole": message.content[0].text,
        "stop_reason": message.stop_reason,
        "usage": message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0),
        "output_tokens": message.usage.output_tokens,
    }
    found["raw"] = [event.type for event in client.messages.create(messages=QUESTION, stream=True, **COMMON)]
    with client.messages.stream(messages=QUESTION, **COMMON) as stream:
        found["streamed"] = "".join(stream.text_stream)
        final = stream.get_final_message()
    found["accumulated"] = [final.content[0].text, final.stop_reason, final.usage.output_tokens]
    stopped = client.messages.create(messages=QUESTION, stop_sequences=[" France"], **COMMON)
    found["stopped"] = [stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence]
    short = client.messages.create(messages=QUESTION, **COMMON | {"max_tokens": 2})
    found["short"] = [short.stop_reason, short.usage.output_tokens]
    counted = client.messages.count_tokens(model="claude-sonnet-4-5", messages=QUESTION)
    found["counted"] = counted.input_tokens
    continued = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
    found["continued"] = client.messages.create(messages=continued, **COMMON).content[0].text
    found["models"] = [model.id for model in client.models.list()]
    return found


def with_tools(client: anthropic.Anthropic) -> str:
    """The answer after a tool's result."""
    messages: list[Any] = [
        *QUESTION,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I look.", "signature": "c2ln"},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "sun"}],
                    "is_error": False,
                }
            ],
        },
    ]
    message = client.messages.create(messages=messages, tools=[TOOL], **COMMON | {"max_tokens": 8})
    return message.content[0].type


def errors(client: anthropic.Anthropic) -> dict[str, str]:
    """Classes of the client's errors, with the messages that programs look at."""
    found = {}
    calls: dict[str, dict[str, Any]] = {
        "too long": {"messages": [{"role": "user", "content": "hello " * 20_000}]},
        "wrong": {"messages": QUESTION, "extra_body": {"temperature": -1}},
        "image": {
            "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]
        },
    }
    for name, call in calls.items():
        for stream in (False, True):
            try:
                client.messages.create(stream=stream, **COMMON | call)
            except anthropic.APIStatusError as error:
                body: Any = error.body
                found[f"{name}, {stream}"] = f"{type(error).__name__}: {body['error']['message']}"
    return found


async def asynchronous(url: str) -> str:
    client = anthropic.AsyncAnthropic(base_url=url, api_key="unused", max_retries=0)
    async with client.messages.stream(messages=QUESTION, **COMMON) as stream:
        return "".join([text async for text in stream.text_stream])


def main(url: str) -> dict[str, Any]:
    client = anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0)
    return sync(client) | {
        "async": asyncio.run(asynchronous(url)),
        "with tools": with_tools(client),
        "errors": errors(client),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
