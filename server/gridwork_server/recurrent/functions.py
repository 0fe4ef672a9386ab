"""Puts our operations in the place of the functions that models call for the heavy parts of layers with a state.

Such functions have the same arguments in all of Transformers' models, since they are made to be replaced by compiled
ones. Each is recognised by its arguments, and replaced only where it computes the same as ours on a few tokens.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gridwork_kernels.replace import sample_values
from gridwork_kernels.states import StateLayout
from gridwork_server.errors import PathError
from gridwork_server.recurrent import cache
from gridwork_server.recurrent.cache import StateCache
from gridwork_server.recurrent.operations import Recurrence, StateKey, Tensors
from gridwork_server.recurrent.pool import StateGeometry, StatePool, StateProbe

_MARK = "_gridwork_replaces"
"""Attribute of our functions: the function that each stands for."""

_ACTIVATIONS = {None: False, "silu": True, "swish": True}
"""Activations of convolutions that the kernel computes: whether it is SiLU."""


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """`[1, T, …]` as `[T, …]`."""
    return tensor[0]


def _flat_channels(tensor: torch.Tensor) -> torch.Tensor:
    """`[1, C, T]` as `[T, C]`."""
    return tensor.transpose(1, 2)[0]


def _as_channels(tensor: torch.Tensor) -> torch.Tensor:
    """`[T, C]` as `[1, C, T]`."""
    return tensor[None].transpose(1, 2)


def _wide(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.float()


def _convolve(
    states: StateCache,
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> torch.Tensor:
    if activation not in _ACTIVATIONS:
        raise PathError(f"its convolutions have the activation {activation!r}")
    operation = Recurrence("causal_conv", (_ACTIVATIONS[activation],))
    x = _flat_channels(hidden_states).to(weight.dtype)
    return _as_channels(states.recur(True, operation, (x, weight, bias))[0]).to(hidden_states.dtype)


def _apply_delta_rule(
    states: StateCache,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = *(_flat(tensor) for tensor in (query, key, value)), _flat(g).float(), _flat(beta).float()
    out, state = states.recur(False, Recurrence("gated_delta", (bool(use_qk_l2norm_in_kernel),)), tensors)
    return out[None], state


def _scan_heads(
    states: StateCache,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    z: torch.Tensor | None = None,
    **_: Any,
) -> Any:
    if z is not None:
        raise PathError("its scans have a gate")
    operation = Recurrence("scan_heads", (bool(dt_softplus), float(dt_limit[0]), float(dt_limit[1])))
    tensors = _flat(hidden_states), _flat(dt), A.float(), _flat(B), _flat(C), _wide(D), _wide(dt_bias)
    out, state = states.recur(False, operation, tensors)
    return (out[None], state) if return_final_states else out[None]


def _scan_channels(
    states: StateCache,
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    x, dt, b, c = (_flat_channels(tensor) for tensor in (hidden_states, dt, B, C))
    operation = Recurrence("scan_channels", (bool(delta_softplus),))
    out, state = states.recur(False, operation, (x, dt, A.float(), b, c, _wide(D), _wide(delta_bias)))
    if z is not None:
        out = out * nn.functional.silu(_flat_channels(z))
    out = _as_channels(out)
    return (out, state) if return_last_state else out


@dataclass(frozen=True)
class _Seam:
    """A kind of function that models call."""

    required: frozenset[str]
    """Arguments by which it is recognised."""
    excluded: frozenset[str]
    ours: Callable[..., Any]
    """Takes the active cache, then the function's own arguments."""
    sample: Callable[[], dict[str, Any]]
    """Arguments to compare the two with, of a sequence that begins."""


_TOKENS = 5


def _sample_conv() -> dict[str, Any]:
    return {
        "hidden_states": sample_values(1, 24, _TOKENS),
        "weight": sample_values(24, 4) * 0.7,
        "bias": sample_values(24) * 0.3,
        "activation": "silu",
    }


def _sample_delta(decays: tuple[int, ...] = ()) -> dict[str, Any]:
    heads = (1, _TOKENS, 2)
    return {
        "query": sample_values(*heads, 16),
        "key": sample_values(*heads, 16) * 0.9 + 0.05,
        "value": sample_values(*heads, 8) + 0.1,
        "g": -sample_values(*heads, *decays).abs(),
        "beta": sample_values(*heads).sigmoid(),
        "initial_state": None,
        "output_final_state": True,
        "use_qk_l2norm_in_kernel": True,
    }


def _sample_scan_heads() -> dict[str, Any]:
    return {
        "hidden_states": sample_values(1, _TOKENS, 4, 8),
        "dt": sample_values(1, _TOKENS, 4),
        "A": -sample_values(4).abs() - 0.1,
        "B": sample_values(1, _TOKENS, 2, 16),
        "C": sample_values(1, _TOKENS, 2, 16) + 0.1,
        "chunk_size": 4,
        "D": sample_values(4),
        "dt_bias": sample_values(4) * 0.5,
        "dt_softplus": True,
        "return_final_states": True,
    }


def _sample_scan_channels() -> dict[str, Any]:
    return {
        "hidden_states": sample_values(1, 24, _TOKENS),
        "dt": sample_values(1, 24, _TOKENS) * 0.8,
        "A": -sample_values(24, 16).abs() - 0.1,
        "B": sample_values(1, 16, _TOKENS),
        "C": sample_values(1, 16, _TOKENS) + 0.1,
        "D": sample_values(24),
        "z": sample_values(1, 24, _TOKENS) * 0.6,
        "delta_bias": sample_values(24) * 0.5,
        "delta_softplus": True,
        "return_last_state": True,
    }


_CONV = frozenset(("hidden_states", "weight", "bias", "activation"))
_DELTA = frozenset(("query", "key", "value", "g", "beta", "initial_state", "output_final_state"))
_SCAN = frozenset(("hidden_states", "dt", "A", "B", "C"))

_SEAMS = (
    _Seam(_CONV, frozenset(("conv_state",)), _convolve, _sample_conv),
    _Seam(_DELTA, frozenset(), _apply_delta_rule, _sample_delta),
    _Seam(_DELTA, frozenset(), _apply_delta_rule, functools.partial(_sample_delta, (16,))),
    _Seam(_SCAN | {"chunk_size", "return_final_states"}, frozenset(("zxbcdt",)), _scan_heads, _sample_scan_heads),
    _Seam(_SCAN | {"delta_bias", "return_last_state"}, frozenset(), _scan_channels, _sample_scan_channels),
)


@torch.inference_mode()
def replace_functions(model: nn.Module) -> None:
    """Replaces the functions in the modules of Python that the model's classes come from. They compute as before unless
    a cache of ours is active."""
    for module in {type(part).__module__ for part in model.modules()}:
        namespace = vars(sys.modules[module])
        for name, function in list(namespace.items()):
            if not callable(function) or isinstance(function, type) or hasattr(function, _MARK):
                continue
            for seam in _seams_of(function):
                if _computes_the_same(function, seam):
                    namespace[name] = _replacement(function, seam)
                    break


def _seams_of(function: Callable[..., Any]) -> Iterator[_Seam]:
    """Kinds of functions with these arguments."""
    try:
        names = set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return
    yield from (seam for seam in _SEAMS if seam.required <= names and not seam.excluded & names)


def _replacement(function: Callable[..., Any], seam: _Seam) -> Callable[..., Any]:
    positional = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        states = cache.active()
        if states is None:
            return function(*args, **kwargs)
        return seam.ours(states, **dict(zip(positional, args, strict=False)), **kwargs)

    setattr(replaced, _MARK, function)
    return replaced


class _OneSequence:
    """The context of a single sequence that begins, for comparing functions."""

    def recur(self, key: StateKey, operation: Recurrence, tensors: Tensors) -> torch.Tensor:
        """See StatePool.recur."""
        probe = StateProbe()
        probe.recur(key, operation, tensors)
        layout = StateLayout(
            torch.tensor([0, _TOKENS], dtype=torch.int32), torch.zeros(1, dtype=torch.int64), torch.tensor([True])
        )
        states: dict[StateKey, StateGeometry] = probe.states
        return StatePool(states, 1, torch.device("cpu")).recur(key, operation, tensors, layout)


def _computes_the_same(function: Callable[..., Any], seam: _Seam) -> bool:
    states = StateCache(_OneSequence())
    states.get_conv_state(0)
    states.get_recurrent_state(0)
    arguments = seam.sample()
    try:
        expected, given = function(**arguments), seam.ours(states, **arguments)
    except Exception:  # a model's own code may raise anything
        return False
    one, other = (result[0] if isinstance(result, tuple) else result for result in (expected, given))
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5)
