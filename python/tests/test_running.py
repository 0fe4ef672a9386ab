"""Running many requests: order, bounds, cancellation."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from gridwork import RequestOutput, running
from gridwork.gate import Gate


def job(number: int, done: list[int]) -> Callable[[], Coroutine[Any, Any, int]]:
    async def run() -> int:
        # Later ones end first.
        await asyncio.sleep(0.002 * (10 - number % 10))
        done.append(number)
        return number

    return run


def test_results_are_in_order_and_few_jobs_run_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "WINDOW", 8)
    begun, done = [], []

    def jobs() -> Iterator[Callable[[], Coroutine[Any, Any, int]]]:
        for number in range(40):
            begun.append(number)
            yield job(number, done)

    loop = running.LoopThread()
    taken = []
    for result in loop.in_order(jobs()):
        taken.append(result)
        assert len(begun) - len(taken) <= 8
    assert taken == list(range(40))
    assert done != taken

    async def main() -> list[int]:
        return [result async for result in running.in_order(jobs())]

    assert asyncio.run(main()) == list(range(40))
    loop.stop_with(nothing)


async def nothing() -> None:
    """The last that a loop runs."""


def test_leaving_early_cancels_what_runs() -> None:
    cancelled = []

    async def endless() -> int:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return 0

    async def quick() -> int:
        await asyncio.sleep(0.01)
        return 1

    loop = running.LoopThread()
    results = loop.in_order([quick, endless, endless])
    assert next(results) == 1
    results.close()  # type: ignore[attr-defined]
    loop.run(asyncio.sleep(0))
    loop.stop_with(nothing)
    assert cancelled == [True, True]


def test_streams_are_merged_and_an_error_ends_all() -> None:
    closed = []

    def stream(name: str, pieces: int, fails: bool = False) -> running.StreamJob:
        async def run() -> AsyncIterator[RequestOutput]:
            try:
                for number in range(pieces):
                    await asyncio.sleep(0.001)
                    yield RequestOutput(f"{name}{number}", None)
                if fails:
                    raise ValueError(name)
            finally:
                closed.append(name)

        return run

    async def main() -> None:
        merged = running.merged([stream("a", 3), stream("b", 3)])
        found = [piece.request_id async for piece in merged]
        assert sorted(found) == ["a0", "a1", "a2", "b0", "b1", "b2"]
        with pytest.raises(ValueError, match="c"):
            async for _ in running.merged([stream("c", 1, fails=True), stream("d", 10_000)]):
                pass
        assert sorted(closed) == ["a", "b", "c", "d"]

    asyncio.run(main())


def test_a_gate_bounds_the_weight_inside_and_keeps_the_order() -> None:
    async def main() -> None:
        gate, inside, order, most = Gate(4), [0], [], [0]

        async def enter(number: int, weight: int) -> None:
            async with gate.inside(weight):
                order.append(number)
                inside[0] += min(weight, 4)
                most[0] = max(most[0], inside[0])
                await asyncio.sleep(0.001)
                inside[0] -= min(weight, 4)

        weights = [1, 2, 3, 1, 9, 1, 4, 2]
        tasks = [asyncio.ensure_future(enter(number, weight)) for number, weight in enumerate(weights)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 1, 2, 4, 5, 6, 7] and most[0] == 4 and inside[0] == 0
        async with gate.inside(4):
            pass

    asyncio.run(main())
