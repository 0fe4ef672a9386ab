"""`--compile`: compiles the model's forward() on the paged path with PyTorch, and keeps the result on disk.

The context of attention changes with every step, so attention is a single operation that the compiler does not look
into. It finds the step where `Compiled` has put it. The compiler knows operations of our own kernels by the shapes of
their results.
"""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import nn

from gridwork_kernels.paged_attention import AttentionOptions
from gridwork_server import __version__
from gridwork_server.attention import ARGUMENT, PagedStep


class Compiled:
    """A model whose `forward()` is compiled for calls with a step of the paged path. Other calls, such as those that
    the self-check compares with, run the model's own code."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        """Nothing is compiled before the first step. folder: place of compiled code on disk."""
        # PyTorch reads this variable whenever it compiles.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        _describe_kernels()
        self._model = model
        self._plain: Callable[..., Any] = model.forward
        self._compiled = torch.compile(self._plain, dynamic=True, fullgraph=True)
        self._step = _TracedStep()

        @functools.wraps(self._plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            step = kwargs.get(ARGUMENT)
            if not isinstance(step, PagedStep):
                return self._plain(*args, **kwargs)
            _current.step = step
            try:
                return self._compiled(*args, **kwargs | {ARGUMENT: self._step})
            finally:
                _current.step = None

        model.forward = forward

    def undo(self) -> None:
        """Restores the model's own `forward()`."""
        del self._model.forward


def cache_folder(config_json: bytes, dtype: torch.dtype) -> Path:
    """Folder of compiled code for such a model on this machine, with these versions."""
    import transformers

    parts = (
        *(config_json, str(dtype), torch.__version__, transformers.__version__, __version__),
        *(torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads())),
    )
    key = hashlib.sha256(b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts))
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "gridwork" / "compile" / key.hexdigest()[:16]


class _Current:
    """State that compiled code cannot get as an argument."""

    step: PagedStep | None = None


_current = _Current()


class _TracedStep:
    """Stands for the step while a model is traced."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        return torch.ops.gridwork.attend(
            query, key, value, options.sinks, layer, options.scale, options.window, options.softcap
        )


@torch.library.custom_op(
    "gridwork::attend",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? sinks, int layer, float scale, int window, float softcap)"
    " -> Tensor",
)
def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    layer: int,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Writes keys and values into the cache of the step that is being computed, and attends. Layers are called in the
    order in which their results need each other, whatever the compiler does."""
    assert _current.step is not None
    options = AttentionOptions(scale=scale, window=window, softcap=softcap, sinks=sinks)
    return _current.step.attend(layer, query, key, value, options)


@_attend.register_fake
def _(query: torch.Tensor, _key: torch.Tensor, value: torch.Tensor, *_options: Any) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[1], value.shape[2])


@functools.cache
def _describe_kernels() -> None:
    """Tells the compiler the shapes of our operations' results. A model with an operation that is missing here fails to
    compile, and runs uncompiled."""
    from gridwork_kernels import cpu_library

    if not cpu_library.load():
        return

    def linear(
        x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, out_features: int, float32_out: bool
    ) -> torch.Tensor:
        return x.new_empty(*x.shape[:-1], out_features, dtype=torch.float32 if float32_out else x.dtype)

    def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, form: int) -> torch.Tensor:
        return torch.empty_like(x)

    def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
        return torch.empty_like(x)

    def experts_in(x: torch.Tensor, index: torch.Tensor, *rest: Any) -> torch.Tensor:
        return x.new_empty(index.shape[0] * index.shape[1], rest[-1])

    def experts_out(x: torch.Tensor, index: torch.Tensor, *rest: Any) -> torch.Tensor:
        return x.new_empty(index.shape[0], rest[-1])

    for fake in (linear, rms_norm, layer_norm, experts_in, experts_out):
        name = f"gridwork_cpu::{fake.__name__}"
        if not hasattr(torch.ops.gridwork_cpu, fake.__name__):
            continue
        try:
            torch.library.register_fake(name, fake)
        except RuntimeError as error:  # the library has registered its own
            logger.debug(f"{name}: {error}")
