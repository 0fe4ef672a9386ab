"""Loads one rank's part of a model that is split over several processes by Transformers' own tensor-parallel plan.

Every rank has some of the attention heads and some of the intermediate features of each layer, and works on all tokens.
The ranks' contributions to the hidden state are summed twice in each layer. Ranks may have shares of different sizes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from loguru import logger
from torch import nn

from gridwork_server import attention
from gridwork_server.errors import ModelError
from gridwork_server.parallel.group import RankGroup
from gridwork_server.parallel.plan import Part, plan
from gridwork_server.parallel.weight_files import WeightFiles
from gridwork_server.text import some

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelPart:
    """One rank's part of a model."""

    model: nn.Module
    """The rank's modules, on the CPU."""
    num_parameters: int
    """Number of parameters of the whole model."""
    weight_bytes: int
    """Size of the weights on this rank."""
    notes: list[str]
    """Modules that are whole on every rank although the plan splits them, with the reason."""


def load_part(
    model_class: type["PreTrainedModel"],
    model_config: "PretrainedConfig",
    model_path: Path,
    dtype: torch.dtype,
    group: RankGroup,
    attention_name: str | None = attention.NAME,
) -> ModelPart:
    """Builds this rank's part of the model. attention_name: a name in Transformers' registry; None for the model's own
    choice. Raises ModelError for models that cannot be split, and for incomplete or damaged weights."""
    model = _build(model_class, model_config, dtype, attention_name)
    ties = _owners_of_tied(model)
    num_parameters = sum(
        parameter.numel()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in ties or ties[name] == name
    )
    splits = plan(model, group)
    for note in splits.notes if group.is_leader else ():
        logger.warning(note)
    with WeightFiles(model_path, model) as files:
        weight_bytes = _load(model, files, splits.parts, ties, dtype)
        if files.unused and group.is_leader:
            logger.warning(f"the weights have tensors that the model does not use: {some(files.unused)}")
    for change in splits.changes:
        change()
    return ModelPart(model, num_parameters, weight_bytes, splits.notes)


def _build(
    model_class: type["PreTrainedModel"],
    model_config: "PretrainedConfig",
    dtype: torch.dtype,
    attention_name: str | None,
) -> "PreTrainedModel":
    """Builds the model with its buffers (such as rotary frequencies), and its parameters on `meta`."""
    from transformers.initialization import no_init_weights

    if attention_name is not None:
        model_config._attn_implementation = attention_name
    model_config.dtype = dtype
    with _parameters_on_meta(), no_init_weights(), _default_dtype(dtype):
        return model_class(model_config)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules that are built inside the `with` block get real buffers, but no memory for their parameters."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _owners_of_tied(model: "PreTrainedModel") -> dict[str, str]:
    """Maps each parameter that shares its values with another to the owner of the values; owners map to themselves."""
    ties = dict(model.all_tied_weights_keys)
    return ties | {source: source for source in ties.values()}


def _load(
    model: "PreTrainedModel", files: WeightFiles, parts: dict[str, Part], ties: dict[str, str], dtype: torch.dtype
) -> int:
    """Gives every parameter, and every saved buffer, its local values. Returns their size in bytes."""
    wide = [re.compile(_as_pattern(pattern)) for pattern in model._get_dtype_plan(dtype)]
    missing = []
    num_bytes = 0
    owners: dict[str, torch.Tensor] = {}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    buffers = [name for name, _buffer in model.named_buffers() if name in files]
    # Owners of shared values come first.
    for name in sorted([*tensors, *buffers], key=lambda name: ties.get(name, name) != name):
        part = parts.get(name)
        source = name if name in files else _saved_twin(name, files, ties)
        if source is None:
            missing.append(name)
            continue
        expected = list(tensors[name].shape) if name in tensors else files.shape(name)
        if files.shape(source) != expected:
            raise ModelError(
                f"weights and config.json disagree in shape: {source} is {files.shape(source)}, not {expected}; they "
                "are not of one model, download it again"
            )
        owner = owners.get(ties.get(name, name))
        shared = owner if owner is None or part is None else part.of(owner)
        if name not in files and shared is not None:
            value = shared
        else:
            value = files.read(source, part)
            if value.is_floating_point():
                value = value.to(torch.float32 if any(pattern.search(name) for pattern in wide) else dtype)
            # The files hold the values twice: one copy is enough when both are equal.
            if shared is not None and torch.equal(shared, value):
                value = shared
        if ties.get(name) == name:
            owners[name] = value
        if value is not shared:
            num_bytes += value.nbytes
        _assign(model, name, value)
    if missing:
        raise ModelError(f"the weights lack {some(missing)}; the folder is incomplete, download the model again")
    return num_bytes


def _saved_twin(name: str, files: WeightFiles, ties: dict[str, str]) -> str | None:
    """Name of a saved tensor that shares its values with `name`, which is not saved; None when there is none."""
    if name not in ties:
        return None
    return next((other for other, source in ties.items() if source == ties[name] and other in files), None)


def _assign(model: nn.Module, name: str, value: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[leaf] = value


def _as_pattern(glob: str) -> str:
    return re.escape(glob).replace(r"\*", r"[^.]+")
