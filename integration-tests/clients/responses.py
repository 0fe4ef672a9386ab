"""Runs the openai package's Responses against the server at argv[1]; prints JSON."""

import asyncio
import json
import sys
import time
from typing import Any

import openai

QUESTION = "What is the capital of France?"
PARIS: Any = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
COMMON: dict[str, Any] = {"model": "gpt-5", "temperature": 0, "max_output_tokens": 32_000}


def sync(client: openai.OpenAI) -> dict[str, Any]:
    response = client.responses.create(input=QUESTION, **COMMON)
    assert response.usage is not None
    found: dict[str, Any] = {
        "whole": response.output_text,
        "status": response.status,
        "total": response.usage.total_tokens - response.usage.input_tokens - response.usage.output_tokens,
    }
    events = list(client.responses.create(input=PARIS, stream=True, **COMMON))
    found["events"] = [event.type for event in events]
    found["numbers"] = [event.sequence_number for event in events]
    with client.responses.stream(input=PARIS, **COMMON) as stream:
        found["streamed"] = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    found["accumulated"] = final.output_text
    short = client.responses.create(input=QUESTION, **COMMON | {"max_output_tokens": 2})
    assert short.incomplete_details is not None
    found["short"] = [short.status, short.incomplete_details.reason]
    scored = client.responses.create(input=QUESTION, include=["message.output_text.logprobs"], top_logprobs=2, **COMMON)
    part: Any = scored.output[0]
    logprobs = part.content[0].logprobs
    found["logprobs"] = ["".join(one.token for one in logprobs), len(logprobs[0].top_logprobs)]
    return found


def stored(client: openai.OpenAI) -> dict[str, Any]:
    first = client.responses.create(input=QUESTION, instructions="Be brief.", **COMMON)
    second = client.responses.create(input="And of Italy?", previous_response_id=first.id, **COMMON)
    assert first.usage is not None and second.usage is not None
    read = client.responses.retrieve(first.id)
    items: Any = client.responses.input_items.list(second.id).data
    referred = client.responses.create(
        input=[{"type": "item_reference", "id": first.output[0].id or ""}, {"role": "user", "content": "Sure?"}],
        **COMMON,
    )
    found: dict[str, Any] = {
        "read": read.model_dump() == first.model_dump(),
        "longer": second.usage.input_tokens - first.usage.input_tokens - first.usage.output_tokens,
        "items": [item.content[0].text for item in items],
        "referred": referred.status,
    }
    client.responses.delete(first.id)
    found["after"] = {}
    calls: dict[str, Any] = {
        "read": lambda: client.responses.retrieve(first.id),
        "continue": lambda: client.responses.create(input="a", previous_response_id=first.id, **COMMON),
        "cancel": lambda: client.responses.cancel(second.id),
        "not stored": lambda: client.responses.retrieve(
            client.responses.create(input="Hi", store=False, **COMMON | {"max_output_tokens": 1}).id
        ),
    }
    for name, call in calls.items():
        try:
            call()
        except openai.APIStatusError as error:
            body: Any = error.body
            found["after"][name] = [error.status_code, body["param"]]
    # A response that continues a removed one can still be continued.
    third = client.responses.create(
        input="Thanks.", previous_response_id=second.id, **COMMON | {"max_output_tokens": 4}
    )
    assert third.usage is not None
    found["still longer"] = third.usage.input_tokens > second.usage.input_tokens
    return found


def in_background(client: openai.OpenAI) -> dict[str, Any]:
    begun = client.responses.create(input=QUESTION, background=True, **COMMON)
    states = [begun.status]
    while (now := client.responses.retrieve(begun.id)).status in ("queued", "in_progress"):
        states.append(now.status)
        time.sleep(0.02)
    events = list(client.responses.create(input=QUESTION, background=True, stream=True, **COMMON))
    created: Any = events[0]
    rest = list(client.responses.retrieve(created.response.id, stream=True, starting_after=5))
    long = client.responses.create(input="Count to a million.", background=True, **COMMON)
    cancelled = client.responses.cancel(long.id)
    follow = client.responses.create(
        input="And of Italy?", previous_response_id=begun.id, **COMMON | {"max_output_tokens": 2}
    )
    return {
        "begun": states[0],
        "text": now.output_text,
        "status": now.status,
        "events": [event.type for event in events],
        "rest": [event.sequence_number for event in rest] == list(range(6, len(events))),
        "cancelled": [cancelled.status, client.responses.retrieve(long.id).status],
        "again": client.responses.cancel(long.id).status,
        "follow": follow.status,
    }


async def asynchronous(url: str) -> str:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    async with client.responses.stream(input=PARIS, **COMMON) as stream:
        return (await stream.get_final_response()).output_text


def main(url: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    return sync(client) | {
        "async": asyncio.run(asynchronous(url)),
        "stored": stored(client),
        "background": in_background(client),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
