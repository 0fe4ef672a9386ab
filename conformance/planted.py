"""Plants errors into the paths of every causal type. The self-check must find each error, in 16 bits too, and must
accept every path without one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gridwork_server import attention
from gridwork_server.errors import ModelError
from gridwork_server.model.loading import LoadedModel, load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.paths import self_check
from gridwork_server.paths.batched import BatchedPath
from gridwork_server.paths.caller import Caller
from gridwork_server.paths.paged import PagedPath
from gridwork_server.paths.rounding_check import RoundingCheck
from tests.planted_errors import BATCHED, PAGED

from .generation import CAUSAL, build, first_line, shard_config

LEAST_EFFECT = 2e-3
"""Share of the logits' spread. An error that changes the float32 logits by less does not count in that model."""


@dataclass
class Planted:
    """Result of one type."""

    model_type: str
    path: str
    effects: dict[str, float] = field(default_factory=dict)
    """For each error that changes the logits: the change in float32, as a share of their spread; infinity where the
    model's code fails."""
    missed: dict[str, float] = field(default_factory=dict)
    """Effects of the errors that the self-check in bfloat16 does not find."""
    refused: str = ""
    """Reason why the path is refused in bfloat16 without an error; empty when it is accepted."""


def plant(model_type: str, folder: Path) -> Planted | None:
    """Plants every error into a type. None when it runs neither on `paged` nor on padded `batched`, or not in
    bfloat16."""
    build(model_type, folder, CAUSAL)
    exact = load(shard_config(folder), RankGroup())
    path = exact.path.name
    if path != "paged" and not _is_padded(exact.path):
        return None
    planted = Planted(model_type, path)
    errors = PAGED if path == "paged" else BATCHED
    try:
        rounded = load(shard_config(folder, dtype="bfloat16"), RankGroup())
    except ModelError:
        return None  # the table of types has the reason
    in_float32, in_16_bits = _Check(exact, path), _Check(rounded, path)
    for name, error in errors.items():
        with error():
            effect = in_float32.effect()
        if not effect <= LEAST_EFFECT:
            planted.effects[name] = effect
    planted.refused = in_16_bits.refusal()
    for name in planted.effects:
        with errors[name]():
            if not in_16_bits.refusal():
                planted.missed[name] = planted.effects[name]
    return planted


def _is_padded(path: Any) -> bool:
    return isinstance(path, BatchedPath) and path._mode == "padded"


class _Check:
    """The self-check of one model. What does not depend on the path is computed once."""

    def __init__(self, loaded: LoadedModel, path: str) -> None:
        """path: the path to check, which need not be the model's own."""
        model: Any = loaded.model
        self._loaded, self._model = loaded, model
        self._own = model.config._attn_implementation == attention.NAME
        self._plain = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
        self._paged = path == "paged"
        self._sequences = self_check.sample_tokens(loaded.vocab_size)
        caller, group = Caller(model, loaded.device), RankGroup()
        self._use_attention(False)
        self._expected = self_check.plain_logits(caller, self._sequences, loaded.dtype, 1)
        self._rounding = RoundingCheck(model, caller, loaded.dtype, self._sequences, group, self._use_attention)
        self._use_attention(self._paged)

    def _use_attention(self, of_path: bool) -> None:
        if self._own:
            self._model.set_attn_implementation(attention.NAME if of_path else self._plain)

    def _path(self, dtype: torch.dtype) -> Any:
        if self._paged:
            return PagedPath(self._model, dtype, self._loaded.device, "auto")
        return BatchedPath(Caller(self._model, self._loaded.device), self._plain, "padded")

    def effect(self) -> float:
        """Difference of the path's logits from those of `forward()`, as a share of their spread."""
        try:
            given = self_check.path_logits(self._path(self._loaded.dtype), self._sequences)
            found = self_check.differences(given, self._expected)
        except Exception:  # a model's code may raise anything with the error
            return float("inf")
        return 0.0 if found is None else found.largest

    def refusal(self) -> str:
        """Reason why the path is refused; empty when it is accepted."""
        try:
            path = self._path(self._loaded.dtype)
            found = self_check.compare(path, self._expected, self._sequences, self._loaded.dtype)
            self._rounding.check(path, found, self._expected, lambda: self._path(torch.float32), 4)
        except Exception as error:  # a model's code may raise anything with the error
            return first_line(error)
        return ""
