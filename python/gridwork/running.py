"""Runs jobs: in order with a bounded number at once, or as one stream of what all of them give."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from gridwork.errors import EngineDied
from gridwork.jobs import Job, StreamJob
from gridwork.outputs import RequestOutput

T = TypeVar("T")

WINDOW = 1024
"""Maximum number of jobs that have begun and whose results have not been taken."""
_WAITING_PIECES = 64


async def in_order(jobs: Iterable[Job[T]]) -> AsyncIterator[T]:
    """The results, in the order of the jobs. Leaving the loop early cancels those that run."""
    running: deque[asyncio.Task[T]] = deque()
    try:
        for job in jobs:
            running.append(asyncio.ensure_future(job()))
            if len(running) >= WINDOW:
                yield await running[0]
                running.popleft()
        while running:
            yield await running[0]
            running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def merged(jobs: Iterable[StreamJob]) -> AsyncIterator[RequestOutput]:
    """The pieces of all streams, as they come. Leaving the loop early ends the streams."""
    pieces: asyncio.Queue[RequestOutput | BaseException | None] = asyncio.Queue(_WAITING_PIECES)
    room = asyncio.Semaphore(WINDOW)

    async def run(job: StreamJob) -> None:
        try:
            async with contextlib.aclosing(job()) as stream:  # type: ignore[type-var]
                async for piece in stream:
                    await pieces.put(piece)
        finally:
            room.release()

    async def run_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    await room.acquire()
                    group.create_task(run(job))
            await pieces.put(None)
        except BaseExceptionGroup as errors:
            await pieces.put(errors.exceptions[0])
        except Exception as error:
            await pieces.put(error)

    running = asyncio.ensure_future(run_all())
    try:
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class LoopThread:
    """An event loop on a thread of its own, for callers that are not asynchronous, or whose own loop is running."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gridwork", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Starts a coroutine. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine; an exception in the caller's thread, such as KeyboardInterrupt, cancels it."""
        future = self.submit(coroutine)
        try:
            return _result(future)
        except BaseException:
            future.cancel()
            raise

    def in_order(self, jobs: Iterable[Job[T]]) -> Iterator[T]:
        """The results, in the order of the jobs, which are taken from `jobs` on the caller's thread. Leaving the loop
        early cancels those that run."""
        running: deque[Future[T]] = deque()
        try:
            for job in jobs:
                running.append(self.submit(job()))
                if len(running) >= WINDOW:
                    yield _result(running[0])
                    running.popleft()
            while running:
                yield _result(running[0])
                running.popleft()
        finally:
            for future in running:
                future.cancel()

    def iterate(self, stream: AsyncIterator[T]) -> Iterator[T]:
        """The elements of an asynchronous iterator."""
        try:
            while True:
                try:
                    yield self.run(_next(stream))
                except StopAsyncIteration:
                    return
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None and not self._loop.is_closed():
                self.run(close())

    def stop_with(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancels everything that runs, runs `last`, and ends the thread."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            with contextlib.suppress(Exception):
                self.submit(_end_with(last)).result(5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
        if not self._loop.is_running():
            self._loop.close()


def _result(future: "Future[T]") -> T:
    try:
        return future.result()
    except CancelledError:
        # Nobody else cancels what a caller waits for.
        raise EngineDied("this LLM was closed while the request ran") from None


async def _next(stream: AsyncIterator[T]) -> T:
    return await anext(stream)


async def _end_with(last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await last()
