"""The sections of a conformance run, and their results."""

import contextlib
import functools
import io
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from conformance.encoders import Row, conformance_encoders
from conformance.generation import CAUSAL, SEQ2SEQ, Verdict, check
from conformance.planted import Planted, plant
from conformance.scaled_rope import KINDS, scaled
from conformance.scaled_rope import types as scaled_rope_types
from conformance.shrink import CANNOT_GENERATE
from conformance.tensor_parallel import Outcome


@dataclass
class Found:
    """Results of a run, by section."""

    generators: dict[str, list[Verdict]] = field(default_factory=dict)
    encoders: list[Row] = field(default_factory=list)
    tensor_parallel: list[Outcome] = field(default_factory=list)
    scaled_rope: list[Verdict] = field(default_factory=list)
    planted: list[Planted] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """Types whose answer differs from Transformers' or is missing where Transformers has one, and types whose
        self-check is wrong."""
        generators = [v for verdicts in self.generators.values() for v in verdicts] + self.scaled_rope
        return [
            *(v.model_type for v in generators if not v.exact and not v.reference_error),
            *(row.model_type for row in self.encoders if not row.is_right and row.path != "left out"),
            *(f"{outcome.model_type} over two ranks" for outcome in self.tensor_parallel if outcome.verdict == "WRONG"),
            *(f"self-check of {found.model_type}" for found in self.planted if found.missed or found.refused),
        ]


def generators(section: str, only: list[str], folder: Path, **settings: Any) -> list[Verdict]:
    """Checks every type that generates text. section: `causal` or `seq2seq`."""
    verdicts = []
    for name in _types(section):
        if only and name not in only:
            continue
        with contextlib.redirect_stdout(io.StringIO()):  # some models print warnings at every step
            verdict = check(name, folder / section / name, CAUSAL if section == "causal" else SEQ2SEQ, **settings)
        verdicts.append(verdict)
        state = "exact" if verdict.exact else "no reference" if verdict.reference_error else "WRONG"
        why = "; ".join(filter(None, (verdict.error, verdict.reference_error, verdict.reason)))
        print(f"{section:8} {name:28} {state:12} {verdict.path:8} {verdict.seconds:4.1f} s  {why}", flush=True)
    return verdicts


def scaled_rope(only: list[str], folder: Path) -> list[Verdict]:
    """Checks every causal type with rotary embeddings, with frequencies that change at LIMIT tokens."""
    verdicts = []
    for name in scaled_rope_types():
        if only and name not in only:
            continue
        for kind in KINDS:
            with contextlib.redirect_stdout(io.StringIO()):
                verdict = check(name, folder / kind / name, CAUSAL, change=functools.partial(scaled, kind=kind))
            verdict.model_type = f"{name} with {kind}"
            verdicts.append(verdict)
            state = "exact" if verdict.exact else "no reference" if verdict.reference_error else "WRONG"
            why = "; ".join(filter(None, (verdict.error, verdict.reference_error, verdict.reason)))
            print(f"{verdict.model_type:37} {state:12} {verdict.path:8} {verdict.seconds:4.1f} s  {why}", flush=True)
    return verdicts


def _types(section: str) -> list[str]:
    if section == "causal":
        return sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    names = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    # The mapping also has models of speech, which take no text alone.
    return sorted(name for name in names if CONFIG_MAPPING[name]().is_encoder_decoder and not _hears(name))


def _hears(model_type: str) -> bool:
    config = CONFIG_MAPPING[model_type]()
    return any("audio" in name or "encoder_config" in name for name in getattr(config, "sub_configs", {}))


def encoders(only: list[str]) -> list[Row]:
    """Checks every encoder type."""
    rows = []
    for row in conformance_encoders(only or None):
        rows.append(row)
        print(f"encoder  {row.model_type:28} {row}", flush=True)
    return rows


def tensor_parallel(only: list[str], folder: Path) -> list[Outcome]:
    """Checks every causal type with a tensor-parallel plan over two ranks."""
    file = folder / "tensor-parallel.json"
    command = [sys.executable, "-m", "conformance.tensor_parallel", "--json", str(file), *only]
    subprocess.run(command, check=False, cwd=Path(__file__).parent.parent)
    return [Outcome(**entry) for entry in json.loads(file.read_text())]


def planted(only: list[str], folder: Path) -> list[Planted]:
    """Plants errors into the path of every causal type that is paged, or batched with padding."""
    results = []
    for name in _types("causal"):
        if name in CANNOT_GENERATE or (only and name not in only):
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            found = plant(name, folder / "planted" / name)
        if found is None:
            continue
        results.append(found)
        state = "REFUSED" if found.refused else "MISSED" if found.missed else "all found"
        why = found.refused or ", ".join(found.missed)
        print(f"planted  {name:28} {state:12} {found.path:8} {len(found.effects):3} errors  {why}", flush=True)
    return results
