"""Part 4: decode steps that are replayed as CUDA graphs against plain steps of the same model."""

import tempfile
from pathlib import Path
from unittest import mock

import tests.models as models
import torch
from gridwork_server.paths import decode_graphs
from gridwork_server.paths.paged import PagedPath
from tests.paths.test_decode_graphs import LIMITS, SIZES, join_and_leave
from tests.runners import SizedRunner, load_runner

from gpu_check.part import variants
from gpu_check.part.context import Context, Refused

_MODELS = ("llama", "gpt2", "mistral", "gemma3", "gemma2", "qwen3", "qwen3_moe", "deepseek_v2")
_MAY_WAIT = ("qwen3_moe", "deepseek_v2")
"""Models whose experts may be a loop over hits, which waits for the GPU and cannot be recorded."""
_AT_ONCE = 4
_TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
"""Maximum difference of logits, as a share of their spread. A batch that is padded rounds differently."""

Found = tuple[list[torch.Tensor], dict[int, list[int]]]


def run(context: Context) -> None:
    """Compares graphs with the same steps in fixed buffers, then with plain steps, for several models."""
    if context.device.type != "cuda":
        raise Refused("decode graphs need a GPU; leave part 4 out on a CPU")
    variants.run_all(context, _MODELS, run_variant, at_once=_AT_ONCE)


def run_variant(context: Context, name: str) -> None:
    """Compares one model in both dtypes."""
    with tempfile.TemporaryDirectory() as folder:
        models.save(name, Path(folder))
        for dtype in _TOLERANCES:
            title = f"{name} in {dtype}"
            if context.has_time(title):
                with context.checking(title):
                    _compare(context, Path(folder), title, dtype)


def _compare(context: Context, folder: Path, title: str, dtype: str) -> None:
    runner = _runner(folder, dtype, SIZES)
    assert isinstance(runner.path, PagedPath), f"on the {runner.path.name} path: {runner.loaded.path_reason}"
    if runner.path.decode_sizes != list(SIZES):
        reason = f"decodes without graphs ({'; '.join(runner.loaded.notes)})"
        assert title.startswith(_MAY_WAIT), reason
        context.leave_out(f"{title}: {reason}")
        return
    replayed = join_and_leave(runner)
    with mock.patch.object(decode_graphs, "recorder_for", return_value=decode_graphs.EagerRecorder()):
        in_buffers = join_and_leave(_runner(folder, dtype, SIZES))
    plain = join_and_leave(_runner(folder, dtype, ()))
    exact = all(torch.equal(a, b) for a, b in zip(replayed[0], in_buffers[0], strict=True))
    context.fact(
        f"{title}: graphs and the same steps in fixed buffers", "equal bit for bit" if exact else "round apart"
    )
    for kind, expected in (("fixed buffers", in_buffers), ("plain steps", plain)):
        _check(replayed, expected, kind, dtype)


def _runner(folder: Path, dtype: str, sizes: tuple[int, ...]) -> SizedRunner:
    settings = {"device": "cuda", "dtype": dtype, "cuda_graphs": sizes, "block_size": LIMITS.block_size_tokens}
    runner = load_runner(folder, LIMITS, **settings)
    runner.reset()
    return runner


def _check(given: Found, expected: Found, kind: str, dtype: str) -> None:
    """Raises AssertionError when logits or tokens differ by more than rounding. In 16 bits, comparing ends where
    rounding has chosen another token, since sequences differ from there on."""
    for step, (one, other) in enumerate(zip(given[0], expected[0], strict=True)):
        spread = float(other.float().std())
        difference = float((one.float() - other.float()).abs().max()) / spread
        assert difference <= _TOLERANCES[dtype], f"step {step} differs from {kind} by {difference:.2g} of the spread"
        if dtype != "float32" and not torch.equal(one.argmax(-1), other.argmax(-1)):
            return
    if dtype == "float32":
        assert given[1] == expected[1], f"tokens differ from those of {kind}"
