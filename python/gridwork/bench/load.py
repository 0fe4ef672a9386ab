"""Sends requests: a closed loop of clients, or an open one that follows a clock. One event loop drives all of them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from gridwork.bench.measure import Result
from gridwork.bench.prompts import Prompt
from gridwork.bench.stream import AnswerReader
from gridwork.client import Address

_MESSAGE_LETTERS = 100
"""Letters of a server's message that tell one kind of error from others."""
_LAG_EVERY_S = 0.05


@dataclass(frozen=True)
class Target:
    """A server, and the form of requests for it."""

    address: Address
    model: str
    api: str
    """"chat" or "completions"."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request."""

    @property
    def path(self) -> str:
        """Path of the API."""
        return "/v1/chat/completions" if self.api == "chat" else "/v1/completions"

    def body(self, prompt: Prompt, max_tokens: int) -> bytes:
        """A request as JSON."""
        said = {"messages": prompt.as_messages()} if self.api == "chat" else {"prompt": prompt.as_text()}
        body = {
            "model": self.model,
            **said,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        return json.dumps(body).encode()


@dataclass
class Request:
    """A request to send."""

    prompt: Prompt
    max_tokens: int


class Load:
    """A load under way: its results so far, and how many requests are in flight."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        """timeout_s: maximum time of a request, which fails after it."""
        self.results: list[Result] = []
        self.in_flight = 0
        self.num_sent = 0
        self.num_chunks = 0
        """Chunks with tokens that have arrived, those of requests in flight too."""
        self.lags_s: list[float] = []
        """Delays of this program's own event loop, sampled at regular times."""
        self._target = target
        self._timeout_s = timeout_s
        self._began = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._began

    @property
    def last_end_s(self) -> float:
        """End of the last request that ended."""
        return max((result.ended_s for result in self.results), default=self.elapsed_s)

    async def closed(self, requests: Iterator[Request], concurrency: int, until_s: float | None) -> None:
        """Keeps `concurrency` requests in flight until there are no more, or until `until_s`; then waits for those in
        flight."""
        async with self._session() as session:

            async def client() -> None:
                for request in requests:
                    await self._send(session, request, None)
                    if until_s is not None and self.elapsed_s >= until_s:
                        return

            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(client())

    async def open(self, requests: Iterator[Request], arrivals: Iterator[float], until_s: float | None) -> None:
        """Sends each request at its time of arrival in seconds from the start, however many are in flight."""
        async with self._session() as session, asyncio.TaskGroup() as group:
            for request, at_s in zip(requests, arrivals, strict=False):
                if until_s is not None and at_s >= until_s:
                    return
                if (wait_s := at_s - self.elapsed_s) > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(self._send(session, request, at_s))

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with self._target.address.open_session(self._timeout_s) as session:
            self._began = time.perf_counter()
            watch = asyncio.create_task(self._watch_lag())
            try:
                yield session
            finally:
                watch.cancel()

    async def _watch_lag(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_LAG_EVERY_S)
            self.lags_s.append(max(0.0, time.perf_counter() - began - _LAG_EVERY_S))

    async def _send(self, session: aiohttp.ClientSession, request: Request, due_s: float | None) -> None:
        """Sends a request and keeps its result. A failure is a result too."""
        body = self._target.body(request.prompt, request.max_tokens)
        reader, error = AnswerReader(), "interrupted"
        self.in_flight += 1
        self.num_sent += 1
        sent_s = due_s if due_s is not None else self.elapsed_s
        try:
            error = await self._answer(session, body, reader)
        finally:
            self.in_flight -= 1
            self.results.append(self._result(reader, sent_s, error))

    async def _answer(self, session: aiohttp.ClientSession, body: bytes, reader: AnswerReader) -> str:
        """Reads the answer; returns the kind of error, or an empty text."""
        url, headers = self._target.address.url + self._target.path, {"Content-Type": "application/json"}
        try:
            async with session.post(url, data=body, headers=headers) as response:
                if response.status != 200:
                    return f"status {response.status}: {_message(await response.read())}"
                async for piece in response.content.iter_any():
                    before = reader.num_chunks
                    reader.feed(piece, self.elapsed_s)
                    self.num_chunks += reader.num_chunks - before
                    if reader.error is not None:
                        return f"error in the stream: {reader.error[:_MESSAGE_LETTERS]}"
        except TimeoutError:
            return f"no whole answer within {self._timeout_s:g} s"
        except (aiohttp.ClientConnectorError, ConnectionRefusedError):
            return "cannot connect"
        except (aiohttp.ClientError, OSError) as failure:
            return f"connection lost: {type(failure).__name__}"
        if not reader.is_done:
            return "the stream ended early"
        return "" if reader.num_chunks else "an answer without tokens"

    def _result(self, reader: AnswerReader, sent_s: float, error: str) -> Result:
        usage = reader.usage
        details = usage.get("prompt_tokens_details") or {}
        counted = int(usage.get("completion_tokens") or 0)
        return Result(
            sent_s=sent_s,
            first_s=reader.first_s,
            last_s=reader.last_s,
            ended_s=self.elapsed_s,
            num_chunks=reader.num_chunks,
            output_tokens=counted or reader.num_chunks,
            has_usage=counted > 0,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            gaps_s=reader.gaps_s,
            error=error or None,
        )


def _message(body: bytes) -> str:
    """The message of an error, in any server's form."""
    try:
        error = json.loads(body)
        for key in ("error", "message", "detail"):
            while isinstance(error, dict) and key in error:
                error = error[key]
    except ValueError:
        error = body.decode(errors="replace")
    return " ".join(str(error).split())[:_MESSAGE_LETTERS]


async def every(seconds: float, call: Callable[[], None]) -> None:
    """Calls again and again, until it is cancelled."""
    while True:
        call()
        await asyncio.sleep(seconds)
