"""Draws the plots of docs/benchmarks/plots from the raw results; runs in an environment with matplotlib, not in the
server's."""

import argparse
from pathlib import Path

import matplotlib

from suite.results import FOLDER, Contestant, Part, read_all

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the backend was chosen

BY_CLIENTS = {
    "throughput": ("tokens_per_s", "tokens per second"),
    "latency": ("tpot_ms", "time per output token, ms (median)"),
    "ttft": ("ttft_ms", "time to first token, ms (median)"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the plots of the benchmarks.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for part in read_all(folder):
        if part.workload == "start":
            bars(folder, part, "ready", dict(_ready(part)), "from command to first token, s")
        elif part.workload == "memory":
            bars(folder, part, "memory", dict(_memory(part)), "peak memory, GiB")
        else:
            for plot, (metric, label) in BY_CLIENTS.items():
                lines(folder, part, plot, metric, label)


def lines(folder: Path, part: Part, plot: str, metric: str, label: str) -> None:
    """A line for each contestant over the levels; the bars are the lowest and highest of the rounds."""
    drawn = [contestant for contestant in part.contestants if _points(contestant, metric)]
    if not any(len(_points(contestant, metric)) > 1 for contestant in drawn):
        return
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for contestant in drawn:
        points = _points(contestant, metric)
        below = [middle - low for _level, middle, low, _high in points]
        above = [high - middle for _level, middle, _low, high in points]
        x, y = [point[0] for point in points], [point[1] for point in points]
        axes.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, label=contestant.name)
    axes.set_xscale("log", base=2)
    ticks = sorted({level for contestant in drawn for level in contestant.levels()})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel({"context": "tokens of context", "offline": "requests at once"}.get(part.workload, "clients"))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    axes.legend()
    _save(folder, figure, axes, part, plot)


def bars(folder: Path, part: Part, plot: str, values: dict[str, float], label: str) -> None:
    if not values:
        return
    figure, axes = plt.subplots(figsize=(6.4, 1 + 0.5 * len(values)))
    drawn = axes.barh(list(values), list(values.values()))
    axes.bar_label(drawn, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(label)
    _save(folder, figure, axes, part, plot)


def _points(contestant: Contestant, metric: str) -> list[tuple[int, float, float, float]]:
    """Level, median, lowest and highest."""
    found = []
    for level in contestant.levels():
        values, middle = contestant.values(metric, level), contestant.median(metric, level)
        if middle is not None:
            found.append((level, middle, min(values), max(values)))
    return found


def _ready(part: Part) -> list[tuple[str, float]]:
    medians = [(contestant.name, contestant.median("ready_s", 1)) for contestant in part.contestants]
    return [(name, value) for name, value in medians if value is not None]


def _memory(part: Part) -> list[tuple[str, float]]:
    found = []
    for contestant in part.contestants:
        for level in contestant.levels():
            if (peak := contestant.median("peak_bytes", level)) is not None:
                found.append((contestant.name, peak / (1 << 30)))
    return found


def _save(folder: Path, figure: "plt.Figure", axes: "plt.Axes", part: Part, plot: str) -> None:
    axes.set_title(f"{part.workload}, {part.model}", fontsize=10)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    file = folder / "plots" / f"{part.model}-{part.workload}-{plot}.png"
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
