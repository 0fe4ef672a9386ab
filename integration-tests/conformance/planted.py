"""Plants errors into the paths of every causal type: the self-check must find each of them, in 16 bits too, and refuse
nothing that has none."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gridwork_server import attention
from gridwork_server.group import RankGroup
from gridwork_server.loading import LoadedModel, load
from gridwork_server.paths import choice, self_check
from gridwork_server.paths.batched import BatchedPath
from gridwork_server.paths.caller import Caller
from gridwork_server.paths.paged import PagedPath
from tests.planted_errors import BATCHED, PAGED

from .generation import CAUSAL, build, first_line, shard_config

LEAST_EFFECT = 2e-3
"""What changes the logits of float32 by less of their spread is no error in that model."""


@dataclass
class Planted:
    """What was found in one type."""

    model_type: str
    path: str
    effects: dict[str, float] = field(default_factory=dict)
    """By error that changes the logits: by how much in float32, as a share of their spread; infinity where the model's
    code fails with it."""
    missed: dict[str, float] = field(default_factory=dict)
    """Those of them that the self-check in bfloat16 does not find."""
    refused: str = ""
    """Why the path is refused in bfloat16 without any error."""


def plant(model_type: str, folder: Path) -> Planted | None:
    """None for types that run on other paths than `paged` and `batched` with padding."""
    build(model_type, folder, CAUSAL)
    exact = load(shard_config(folder), RankGroup())
    path = exact.path.name
    if path != "paged" and not _is_padded(exact.path):
        return None
    planted = Planted(model_type, path)
    errors = PAGED if path == "paged" else BATCHED
    measure = _effect_of(exact)
    for name, error in errors.items():
        with error():
            effect = measure()
        if not effect <= LEAST_EFFECT:
            planted.effects[name] = effect
    rounded = load(shard_config(folder, dtype="bfloat16"), RankGroup())
    planted.refused = _refusal(rounded, path)
    for name in planted.effects:
        with errors[name]():
            if not _refusal(rounded, path):
                planted.missed[name] = planted.effects[name]
    return planted


def _is_padded(path: Any) -> bool:
    return isinstance(path, BatchedPath) and path._mode == "padded"


def _effect_of(loaded: LoadedModel) -> Callable[[], float]:
    """Function that measures by how much of their spread the path's logits differ from those of `forward()`."""
    model: Any = loaded.model
    own = model.config._attn_implementation == attention.NAME
    plain = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    caller, sequences = Caller(model, loaded.device), self_check.sample_tokens(loaded.vocab_size)
    if own:
        model.set_attn_implementation(plain)
    expected = self_check.plain_logits(caller, sequences, torch.float32, 1)
    if own:
        model.set_attn_implementation(attention.NAME if loaded.path.name == "paged" else plain)

    def measure() -> float:
        try:
            path: Any
            if loaded.path.name == "paged":
                path = PagedPath(model, torch.float32, loaded.device, "auto")
            else:
                path = BatchedPath(Caller(model, loaded.device), plain, "padded")
            found = self_check.differences(self_check.path_logits(path, sequences), expected)
        except Exception:  # whatever a model's code makes of the error
            return float("inf")
        return 0.0 if found is None else found.largest

    return measure


def _refusal(loaded: LoadedModel, path: str) -> str:
    """Why the path is not taken; empty when it is."""
    arguments: tuple[Any, ...] = loaded.model, path, "auto", loaded.dtype, loaded.device, RankGroup()
    try:
        chosen = choice.choose(*arguments).path
    except Exception as error:
        return first_line(error)
    return "" if chosen.name == "paged" or _is_padded(chosen) else "sequences of one length share a cache"
