"""Bounds the requests in flight."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Lets in so many at once, in the order of their coming. One that is heavier than all together goes alone."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def inside(self, weight: int) -> AsyncIterator[None]:
        """Waits until there is room for `weight`, and takes it for the time of the block."""
        weight = min(weight, self._capacity)
        if self._waiting or self._taken + weight > self._capacity:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((weight, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave(weight)
                raise
        else:
            self._taken += weight
        try:
            yield
        finally:
            self._leave(weight)

    def _leave(self, weight: int) -> None:
        self._taken -= weight
        while self._waiting:
            weight, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
                continue
            if self._taken + weight > self._capacity:
                return
            self._waiting.popleft()
            self._taken += weight
            turn.set_result(None)
