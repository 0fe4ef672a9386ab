"""Shows a load while it runs: a view that is redrawn on a terminal, a line now and then elsewhere. All on stderr."""

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from gridwork.bench.load import Load, every
from gridwork.bench.measure import Spread

_VIEW_EVERY_S = 0.25
_LINE_EVERY_S = 10.0
_RECENT_S = 5.0
_RECENT_RESULTS = 200


class _View:
    """State of the view: what was counted in the last seconds."""

    def __init__(self, load: Load, total: int | None, duration_s: float | None) -> None:
        self._load = load
        self._total = total
        self._duration_s = duration_s
        self._seen: deque[tuple[float, int, int]] = deque([(time.monotonic(), 0, 0)])

    def _rates(self) -> tuple[float, float]:
        """Requests and chunks a second, in the last seconds."""
        now, load = time.monotonic(), self._load
        self._seen.append((now, len(load.results), load.num_chunks))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RECENT_S:
            self._seen.popleft()
        then, requests, chunks = self._seen[0]
        spent_s = max(now - then, 1e-9)
        return (len(load.results) - requests) / spent_s, (load.num_chunks - chunks) / spent_s

    def facts(self) -> list[tuple[str, str]]:
        """Names and values."""
        load = self._load
        requests_per_s, chunks_per_s = self._rates()
        recent = [result for result in load.results[-_RECENT_RESULTS:] if result.error is None]
        ttft, tpot = Spread.of(each.ttft_ms for each in recent), Spread.of(each.tpot_ms for each in recent)
        failed = sum(result.error is not None for result in load.results[-_RECENT_RESULTS:])
        of_all = f" of {self._total}" if self._total is not None else ""
        return [
            ("answered", f"{len(load.results)}{of_all}"),
            ("in flight", str(load.in_flight)),
            ("requests/s", f"{requests_per_s:.1f}"),
            ("chunks/s", f"{chunks_per_s:.0f}"),
            ("TTFT p50, p99", f"{_ms(ttft.p50)}, {_ms(ttft.p99)}"),
            ("TPOT p50, p99", f"{_ms(tpot.p50)}, {_ms(tpot.p99)}"),
            (f"failed of the last {_RECENT_RESULTS}", str(failed)),
        ]

    def table(self) -> RenderableType:
        """The view on a terminal."""
        table = Table.grid(padding=(0, 2))
        share = len(self._load.results) / self._total if self._total else 0.0
        if self._duration_s:
            share = max(share, self._load.elapsed_s / self._duration_s)
        table.add_row(f"{self._load.elapsed_s:.0f} s", ProgressBar(total=1.0, completed=min(share, 1.0), width=40))
        for name, value in self.facts():
            table.add_row(name, value)
        return table

    def line(self) -> str:
        """The same in a line."""
        shown = "; ".join(f"{name} {value}" for name, value in self.facts())
        return f"{self._load.elapsed_s:.0f} s: {shown}"


@asynccontextmanager
async def shown(load: Load, total: int | None, duration_s: float | None) -> AsyncIterator[None]:
    """Shows the load until the end of the block."""
    console, view = Console(stderr=True), _View(load, total, duration_s)
    if console.is_terminal:
        with Live(view.table(), console=console, auto_refresh=False, transient=True) as live:
            task = asyncio.create_task(every(_VIEW_EVERY_S, lambda: live.update(view.table(), refresh=True)))
            try:
                yield
            finally:
                task.cancel()
        return

    async def lines() -> None:
        await asyncio.sleep(_LINE_EVERY_S)
        await every(_LINE_EVERY_S, lambda: print(view.line(), file=sys.stderr, flush=True))

    task = asyncio.create_task(lines())
    try:
        yield
    finally:
        task.cancel()


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"
