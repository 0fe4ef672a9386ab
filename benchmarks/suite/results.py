"""Raw results: one file for each machine, with every sample of its latest run of each workload and model.

A run replaces a workload's results as a whole, so that the compared figures were measured in turns.
"""

import argparse
import gzip
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from suite.paths import BENCHMARKS, ROOT

DATA = BENCHMARKS / "data"
PAGES = ROOT / "docs/benchmarks"

DEFAULT_MACHINE = "local"
"""Name of a machine that has none. Git ignores its results."""

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
"""Bytes of an element, for the dtypes that contestants run in."""


@dataclass(frozen=True)
class Sample:
    """One measurement in one round. None: not measured; the file leaves it out."""

    round: int
    level: int  # number of clients, batch size, or tokens of context
    tokens_per_s: float | None = None
    ttft_ms: float | None = None
    ttft_p99_ms: float | None = None
    tpot_ms: float | None = None
    prompt_tokens: float | None = None
    missing_tokens: int | None = None  # requested minus generated; figures are comparable when it is 0
    ready_s: float | None = None
    peak_bytes: int | None = None
    kv_bytes: int | None = None  # capacity of the KV cache


@dataclass
class Contestant:
    name: str
    version: str = ""
    note: str = ""
    dtype: str = "bfloat16"
    command: str = ""
    failure: str = ""  # why samples are missing
    samples: list[Sample] = field(default_factory=list)

    def values(self, metric: str, level: int) -> list[float]:
        """The metric at this level in all rounds that measured it."""
        found = (getattr(sample, metric) for sample in self.samples if sample.level == level)
        return [value for value in found if value is not None]

    def median(self, metric: str, level: int) -> float | None:
        values = self.values(metric, level)
        return statistics.median(values) if values else None

    def levels(self) -> list[int]:
        return sorted({sample.level for sample in self.samples})


@dataclass
class Part:
    """The results of one workload on one model."""

    workload: str
    model: str
    measured: str  # date and time, UTC
    machine: dict[str, Any]
    weight_bytes: int
    kv_bytes_per_token: int
    bandwidth_gb_s: list[float] = field(default_factory=list)  # one value for each round
    contestants: list[Contestant] = field(default_factory=list)
    read_bytes: int | None = None  # weight bytes that one token reads; None: all weights

    def contestant(self, name: str) -> Contestant | None:
        return next((contestant for contestant in self.contestants if contestant.name == name), None)

    def rounds(self) -> int:
        return len({sample.round for contestant in self.contestants for sample in contestant.samples})


def write(parts: Iterable[Part], data: Path) -> None:
    """Replaces these parts in the file and keeps all others. The same parts give the same bytes."""
    kept = {(part.workload, part.model): part for part in read(data)}
    kept |= {(part.workload, part.model): part for part in parts}
    text = json.dumps([_plain(kept[key]) for key in sorted(kept)], ensure_ascii=False, separators=(",", ":"))
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_bytes(gzip.compress(text.encode(), mtime=0))


def _plain(part: Part) -> dict[str, Any]:
    values = asdict(part)
    for contestant in values["contestants"]:
        contestant["samples"] = [_compact(sample) for sample in contestant["samples"]]
    return values


def _compact(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in sample.items()
        if value is not None
    }


def read(data: Path) -> list[Part]:
    """Parts of the file, by workload and model; none when there is no file."""
    if not data.exists():
        return []
    return [_part(values) for values in json.loads(gzip.decompress(data.read_bytes()))]


def _part(values: dict[str, Any]) -> Part:
    contestants = [
        Contestant(**(contestant | {"samples": [Sample(**sample) for sample in contestant["samples"]]}))
        for contestant in values["contestants"]
    ]
    return Part(**(values | {"contestants": contestants}))


@dataclass(frozen=True)
class Place:
    """Raw results of one machine, and the folder for the tables and plots that are made of them."""

    data: Path
    folder: Path


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Adds --machine and --folder, which `place` and `places` read."""
    parser.add_argument("--machine", default="", help="name of the machine in benchmarks/data and docs/benchmarks")
    parser.add_argument("--folder", default="", help="folder for raw results, tables and plots, in place of these two")


def place(args: argparse.Namespace) -> Place:
    """The place that the options choose."""
    if args.folder:
        folder = Path(args.folder)
        return Place(folder / "results.json.gz", folder)
    machine = args.machine or DEFAULT_MACHINE
    return Place(DATA / f"{machine}.json.gz", PAGES / machine)


def places(args: argparse.Namespace) -> list[Place]:
    """The place that the options choose; without options, those of all machines with results."""
    if args.folder or args.machine:
        return [place(args)]
    names = [file.name.removesuffix(".json.gz") for file in sorted(DATA.glob("*.json.gz"))]
    return [Place(DATA / f"{name}.json.gz", PAGES / name) for name in names]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median as text, with the lowest and the highest value when they differ from it."""
    if not values:
        return "–"
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"
