"""Prints and writes the figures of a load."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gridwork.bench.measure import Figures, Slo, Spread

_LATENCIES = (
    ("TTFT", "ttft_ms", "time to the first token"),
    ("TPOT", "tpot_ms", "time for each token after the first"),
    ("ITL", "itl_ms", "time between chunks"),
    ("E2E", "e2e_ms", "time to the end of the answer"),
)


def as_json(setting: Mapping[str, Any], found: Figures, lag_ms: Spread, notes: list[str]) -> str:
    """All figures, with the settings that they belong to. Times are milliseconds where a name says so."""
    entry = {"setting": dict(setting), "figures": asdict(found), "client_lag_ms": asdict(lag_ms), "notes": notes}
    return json.dumps(entry, indent=2, ensure_ascii=False) + "\n"


def summary(shown: str, found: Figures, slo: Slo | None, lag_ms: Spread, notes: list[str]) -> RenderableType:
    """The figures as tables."""
    sums = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _sums(found, slo):
        sums.add_row(name, Text(value))
    times = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("milliseconds", "mean", "p50", "p90", "p99", ""):
        times.add_column(title, justify="left" if title in ("milliseconds", "") else "right")
    for title, name, about in _LATENCIES:
        spread: Spread = getattr(found, name)
        values = (_ms(value) for value in (spread.mean, spread.p50, spread.p90, spread.p99))
        times.add_row(title, *values, Text(about, style="dim"))
    parts: list[RenderableType] = [Text(shown, style="bold"), sums, times]
    if found.errors:
        parts.append(Text("errors", style="bold"))
        parts += [Text(f"{count:>6}  {kind}") for kind, count in found.errors.items()]
    parts += [Text(f"note: {note}") for note in [*notes, *_own_notes(found, lag_ms)]]
    return Group(*parts)


def _sums(found: Figures, slo: Slo | None) -> list[tuple[str, str]]:
    cached = f", {found.cached_tokens:,} of them cached" if found.cached_tokens else ""
    rows = [
        ("requests", f"{found.num_requests:,} in {found.duration_s:.2f} s, {found.num_failed:,} failed"),
        ("request throughput", f"{found.requests_per_s:.2f} requests/s"),
        ("output throughput", f"{found.output_tokens_per_s:.1f} tokens/s ({found.output_tokens:,} tokens)"),
        ("prompt throughput", f"{found.prompt_tokens_per_s:.1f} tokens/s ({found.prompt_tokens:,} tokens{cached})"),
    ]
    if slo is not None and found.good_requests is not None and found.goodput_per_s is not None:
        limits = ", ".join(
            f"{name.removesuffix('_ms')} {limit:g} ms" for name, limit in asdict(slo).items() if limit is not None
        )
        share = found.good_requests / max(1, found.num_requests)
        rows.append(
            ("goodput", f"{found.goodput_per_s:.2f} requests/s ({found.good_requests:,} or {share:.0%} keep {limits})")
        )
    return rows


def _own_notes(found: Figures, lag_ms: Spread) -> list[str]:
    """Notes without which the figures would be read wrong."""
    notes = []
    if found.output_count == "chunks" and found.output_tokens:
        notes.append(
            "output tokens are counted by chunks of the stream, for the server sends no usage with all answers"
        )
    elif found.tokens_per_chunk is not None and found.tokens_per_chunk > 1.02:
        notes.append(f"a chunk has {found.tokens_per_chunk:.2f} tokens on average, so that ITL is more than TPOT")
    if lag_ms.p99 is not None and lag_ms.p99 > 20:
        notes.append(f"this client's own event loop was delayed by up to {lag_ms.p99:.0f} ms (p99): it lacks CPU time")
    return notes


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def console(to_stderr: bool = False) -> Console:
    """Colors on a terminal alone, and lines that are not broken in a file."""
    made = Console(stderr=to_stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=to_stderr, highlight=False, width=160)
