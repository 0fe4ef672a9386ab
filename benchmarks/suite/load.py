"""A closed loop of streaming clients for any server of OpenAI's `/v1/completions`.

A client sends its next request when the previous one is answered. Plain requests contain only fields that every server
accepts; those with a schema, only fields that Gridwork and vLLM share.
"""

import asyncio
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Turn:
    """A user's text, and the length of the answer in tokens."""

    text: str
    max_tokens: int
    schema: str = ""
    """JSON schema, as text, that the answer must follow; empty: any answer."""
    is_counted: bool = True
    """False: times of the answer are left out of the figures."""


Conversation = tuple[Turn, ...]
"""Turns, each of which sends the whole conversation before it. A plain request is a conversation of one turn."""


@dataclass(frozen=True)
class Answer:
    ttft_s: float
    tpot_s: float
    num_tokens: int
    prompt_tokens: int  # 0 when the server does not say
    text: str
    is_counted: bool = True  # False: its times are no part of the medians


@dataclass(frozen=True)
class Load:
    """Figures of one run over all conversations."""

    tokens_per_s: float
    ttft_ms: float  # median
    ttft_p99_ms: float
    tpot_ms: float  # median
    num_tokens: int
    prompt_tokens: float  # mean over the prompts
    seconds: float


class RequestFailed(RuntimeError):
    """The server refused a request or broke off its answer."""


def request_body(model: str, prompt: str, turn: Turn) -> dict[str, Any]:
    """The request for an answer to a turn, with the whole conversation before it in the prompt."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": turn.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if turn.schema:
        schema = {"name": "answer", "schema": json.loads(turn.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


async def _ask(session: aiohttp.ClientSession, url: str, model: str, prompt: str, turn: Turn) -> Answer:
    body = request_body(model, prompt, turn)
    started = time.perf_counter()
    first = last = None
    num_events, usage, text = 0, {"completion_tokens": 0, "prompt_tokens": 0}, []
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
            usage = event.get("usage") or usage
            # The last event may hold a finish reason and no text.
            if event.get("choices") and (
                event["choices"][0].get("text") or not event["choices"][0].get("finish_reason")
            ):
                last = time.perf_counter()
                first = first or last
                num_events += 1
                text.append(event["choices"][0].get("text") or "")
    if first is None or last is None:
        raise RequestFailed("no token was streamed")
    num_tokens = usage["completion_tokens"] or num_events
    tpot_s = (last - first) / max(1, num_tokens - 1)
    return Answer(first - started, tpot_s, num_tokens, usage["prompt_tokens"], "".join(text), turn.is_counted)


def summary(answers: Sequence[Answer], seconds: float) -> Load:
    """Medians and sums over the answers of a run that took `seconds`."""
    num_tokens = sum(answer.num_tokens for answer in answers)
    counted = [answer for answer in answers if answer.is_counted]
    ttfts_s = [answer.ttft_s for answer in counted]
    # An answer of one token has no time between tokens.
    tpots_s = [answer.tpot_s for answer in counted if answer.num_tokens > 1] or [math.nan]
    return Load(
        tokens_per_s=num_tokens / seconds,
        ttft_ms=1e3 * statistics.median(ttfts_s),
        ttft_p99_ms=1e3 * percentile(ttfts_s, 0.99),
        tpot_ms=1e3 * statistics.median(tpots_s),
        num_tokens=num_tokens,
        prompt_tokens=statistics.mean(answer.prompt_tokens for answer in answers),
        seconds=seconds,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest-rank method)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def _run(url: str, model: str, conversations: Sequence[Conversation], clients: int, limit_s: float) -> Load:
    waiting = list(reversed(conversations))
    answers: list[Answer] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting:
            said = ""
            for turn in waiting.pop():
                said += turn.text
                answer = await _ask(session, url, model, said, turn)
                answers.append(answer)
                said += answer.text

    timeout = aiohttp.ClientTimeout(total=limit_s)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client(session))
        seconds = time.perf_counter() - started
    return summary(answers, seconds)


def run_load(url: str, model: str, conversations: Sequence[Conversation], clients: int, limit_s: float = 1800) -> Load:
    """Sends all `conversations` with `clients` at once. Raises `RequestFailed`, an `aiohttp.ClientError`, or a
    `TimeoutError` when a request is not answered within `limit_s`."""
    try:
        return asyncio.run(_run(url, model, conversations, clients, limit_s))
    except BaseExceptionGroup as errors:
        # One client's error is enough; which one it is does not matter.
        raise errors.exceptions[0] from None
