"""Plots of the results: one SVG file for each workload and model."""

from pathlib import Path

from suite.results import Contestant, Part
from suite.svg import Panel, Point, Series, bar_chart, line_chart

BY_LEVEL = (
    ("tokens_per_s", "tokens per second"),
    ("tpot_ms", "time per output token, ms (median)"),
    ("ttft_ms", "time to first token, ms (median)"),
)


def draw(parts: list[Part], folder: Path) -> set[str]:
    """Writes the plots of one machine in place of those that are in the folder; returns their files' names."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.svg"):
        file.unlink()
    drawn = set()
    for part in parts:
        text = _bars(part) if part.workload in ("start", "memory") else _lines(part)
        if text:
            name = f"{part.model}-{part.workload}.svg"
            (folder / name).write_text(text)
            drawn.add(name)
    return drawn


def _lines(part: Part) -> str:
    """A panel for each metric. A single level makes no line: its figures stand in the table."""
    contestants = [contestant for contestant in part.contestants if contestant.samples]
    x_label = {"context": "tokens of context", "offline": "requests at once"}.get(part.workload, "clients")
    panels = []
    for metric, label in BY_LEVEL:
        series = [Series(contestant.name, _points(contestant, metric)) for contestant in contestants]
        if any(len(one.points) > 1 for one in series):
            panels.append(Panel(label, x_label, series))
    return line_chart(f"{part.workload}, {part.model}", panels) if panels else ""


def _points(contestant: Contestant, metric: str) -> list[Point]:
    """The median and the range of each level at which the metric was measured."""
    found = []
    for level in contestant.levels():
        values, middle = contestant.values(metric, level), contestant.median(metric, level)
        if middle is not None:
            found.append(Point(level, min(values), middle, max(values)))
    return found


def _bars(part: Part) -> str:
    metric, divisor, label = {
        "start": ("ready_s", 1, "from command to first token, s"),
        "memory": ("peak_bytes", 1 << 30, "peak memory, GiB"),
    }[part.workload]
    values = {
        contestant.name: value / divisor
        for contestant in part.contestants
        for level in contestant.levels()
        if (value := contestant.median(metric, level)) is not None
    }
    return bar_chart(f"{part.workload}, {part.model}", label, values) if values else ""
