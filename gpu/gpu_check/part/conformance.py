"""Part 5: a tiny model of each sample type, served in float32 and bfloat16, against Transformers on the CPU."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from conformance.generation import (
    CAUSAL,
    LIMITS,
    Verdict,
    build,
    first_line,
    own_error_in_16_bits,
    reference_tokens,
    served_tokens,
)
from conformance.tests.test_types import CAUSAL_TYPES
from gpu_check.part import tokens, variants
from gpu_check.part.context import Context

_TINY = ("llama", "gpt2")
_AT_ONCE = 8
_THREADS = 2


def run(context: Context) -> None:
    """Compares all types."""
    variants.run_all(context, _TINY if context.tiny else tuple(CAUSAL_TYPES), run_variant, at_once=_AT_ONCE)


def run_variant(context: Context, name: str) -> None:
    """Compares one type in both dtypes."""
    path, _kind = CAUSAL_TYPES[name]
    torch.set_num_threads(_THREADS)
    logger.remove()
    settings: dict[str, Any] = {"device": context.device.type, "block_size": LIMITS.block_size_tokens}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            model_class = build(name, folder, CAUSAL)
            expected = reference_tokens(folder, model_class)
        except Exception as error:
            context.leave_out(f"{name}: Transformers itself makes no text ({first_line(error)})")
            return
        _in_float32(context, name, path, folder, expected, settings)
        _in_bfloat16(context, name, folder, model_class, settings)


def _in_float32(
    context: Context, name: str, path: str, folder: Path, expected: list[list[int]], settings: dict[str, Any]
) -> None:
    """Checks that tokens equal those of `generate()`, and that the path is the known one."""
    verdict = Verdict(name)
    try:
        problem = tokens.difference(expected, served_tokens(folder, verdict, **settings))
    except Exception as error:
        problem = first_line(error)
    if not problem and verdict.path != path:
        problem = f"runs on the {verdict.path} path, not on {path}: {verdict.reason}"
    context.check(f"{name} in float32", problem, f"{verdict.path} path")


def _in_bfloat16(context: Context, name: str, folder: Path, model_class: Any, settings: dict[str, Any]) -> None:
    """Checks that rounding explains each token that is not the most likely one."""
    verdict = Verdict(name)
    try:
        served = served_tokens(folder, verdict, dtype="bfloat16", **settings)
    except Exception as error:
        if own := own_error_in_16_bits(folder, model_class):
            context.leave_out(f"{name} in bfloat16: {own}")
            return
        context.check(f"{name} in bfloat16", first_line(error))
        return
    context.check(f"{name} in bfloat16", tokens.lag(folder, model_class, served), f"{verdict.path} path")
