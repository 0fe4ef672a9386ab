"""Raw results: a file for each workload and model, which holds every sample of every contestant of one run, so that
what is compared was measured in turns on one machine. Only the standard library: the plots' environment reads it."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs/benchmarks"
"""Where the tables are; raw results and plots are below it."""

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
"""Those that contestants run in."""


@dataclass(frozen=True)
class Sample:
    """One measurement in one round; what it does not tell is None and left out of the file."""

    round: int
    level: int  # clients, size of the batch, or tokens of context
    tokens_per_s: float | None = None
    ttft_ms: float | None = None
    ttft_p99_ms: float | None = None
    tpot_ms: float | None = None
    prompt_tokens: float | None = None
    missing_tokens: int | None = None  # fewer than were asked for; 0 makes figures comparable
    ready_s: float | None = None
    peak_bytes: int | None = None
    kv_bytes: int | None = None  # what the server was given for keys and values


@dataclass
class Contestant:
    name: str
    version: str = ""
    note: str = ""
    dtype: str = "bfloat16"
    command: str = ""
    failure: str = ""  # why there are no samples, or no more of them
    samples: list[Sample] = field(default_factory=list)

    def values(self, metric: str, level: int) -> list[float]:
        """Of all rounds."""
        found = (getattr(sample, metric) for sample in self.samples if sample.level == level)
        return [value for value in found if value is not None]

    def median(self, metric: str, level: int) -> float | None:
        values = self.values(metric, level)
        return statistics.median(values) if values else None

    def levels(self) -> list[int]:
        return sorted({sample.level for sample in self.samples})


@dataclass
class Part:
    """A workload on a model."""

    workload: str
    model: str
    measured: str  # date and time, UTC
    machine: dict[str, Any]
    weight_bytes: int
    kv_bytes_per_token: int
    bandwidth_gb_s: list[float] = field(default_factory=list)  # one for each round
    contestants: list[Contestant] = field(default_factory=list)
    read_bytes: int | None = None  # of the weights, what a token reads; None: all

    def contestant(self, name: str) -> Contestant | None:
        return next((contestant for contestant in self.contestants if contestant.name == name), None)

    def rounds(self) -> int:
        return len({sample.round for contestant in self.contestants for sample in contestant.samples})


def write(part: Part, folder: Path = FOLDER) -> Path:
    (folder / "results").mkdir(parents=True, exist_ok=True)
    file = folder / "results" / f"{part.model}-{part.workload}.json"
    values = asdict(part)
    for contestant in values["contestants"]:
        contestant["samples"] = [_compact(sample) for sample in contestant["samples"]]
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    return file


def _compact(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in sample.items()
        if value is not None
    }


def read(file: Path) -> Part:
    values = json.loads(file.read_text())
    values["contestants"] = [
        Contestant(**(contestant | {"samples": [Sample(**sample) for sample in contestant["samples"]]}))
        for contestant in values["contestants"]
    ]
    return Part(**values)


def read_all(folder: Path = FOLDER) -> list[Part]:
    return [read(file) for file in sorted((folder / "results").glob("*.json"))]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and the lowest and highest when they differ from it."""
    if not values:
        return "–"
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"
