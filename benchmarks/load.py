"""A closed loop of streaming clients for any server of OpenAI's `/v1/completions`: each sends its next request when its
last one has been answered. Only fields that every server accepts are sent."""

import asyncio
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp


@dataclass(frozen=True)
class Request:
    prompt: str
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    ttft_s: float
    tpot_s: float
    num_tokens: int
    text: str


@dataclass(frozen=True)
class Load:
    """What one run over all requests gave."""

    tokens_per_s: float
    ttft_ms: float  # median
    tpot_ms: float  # median
    num_tokens: int


class RequestFailed(RuntimeError):
    """The server refused or broke off an answer."""


async def _ask(session: aiohttp.ClientSession, url: str, model: str, request: Request) -> Answer:
    body = {
        "model": model,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "stream": True,
    }
    started = time.perf_counter()
    first = last = None
    num_events, usage_tokens, text = 0, None, []
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RequestFailed(f"{response.status} {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                break
            event = json.loads(data)
            if "error" in event:
                raise RequestFailed(str(event["error"])[:300])
            if event.get("usage"):
                usage_tokens = event["usage"]["completion_tokens"]
            if event.get("choices"):
                last = time.perf_counter()
                first = first or last
                num_events += 1
                text.append(event["choices"][0].get("text") or "")
    if first is None or last is None:
        raise RequestFailed("no token was streamed")
    num_tokens = usage_tokens or num_events
    return Answer(first - started, (last - first) / max(1, num_tokens - 1), num_tokens, "".join(text))


async def _run(url: str, model: str, requests: Sequence[Request], clients: int) -> Load:
    waiting = list(reversed(requests))
    answers: list[Answer] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting:
            answers.append(await _ask(session, url, model, waiting.pop()))

    timeout = aiohttp.ClientTimeout(total=1800)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client(session))
        seconds = time.perf_counter() - started
    num_tokens = sum(answer.num_tokens for answer in answers)
    # An answer of one token has no time between tokens.
    tpots_s = [answer.tpot_s for answer in answers if answer.num_tokens > 1] or [math.nan]
    return Load(
        tokens_per_s=num_tokens / seconds,
        ttft_ms=1e3 * statistics.median(answer.ttft_s for answer in answers),
        tpot_ms=1e3 * statistics.median(tpots_s),
        num_tokens=num_tokens,
    )


def run_load(url: str, model: str, requests: Sequence[Request], clients: int) -> Load:
    """Answers all `requests` with `clients` at once; raises `RequestFailed` (in a group) when one is not answered."""
    return asyncio.run(_run(url, model, requests, clients))
