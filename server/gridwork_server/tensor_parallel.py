"""One rank's part of a model that is split over several processes, by Transformers' own tensor-parallel plan.

Every rank has some of the attention heads and some of the intermediate features of each layer, and works on all tokens.
What a layer adds to the hidden state is summed over the ranks, twice a layer. Shares may differ by rank.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from loguru import logger
from torch import nn

from gridwork_server import attention
from gridwork_server.errors import ModelError
from gridwork_server.group import RankGroup
from gridwork_server.weight_files import WeightFiles

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_COLUMNS, _ROWS, _HEAD = "colwise", "rowwise", "colwise_gather_output"

_WHOLE = ("replicated_with_grad_allreduce", "replicate", "embedding_rowwise", "embedding_colwise")
"""Styles of what every rank has whole. Embeddings are among it: looking up is no work, and saves a sum."""

_GRANULE = 32
"""Intermediate features are shared out in multiples of this where possible: what vector units and panels like."""


class SummedLinear(nn.Module):
    """A linear layer of which every rank has some input features; the ranks' results are summed."""

    def __init__(self, linear: nn.Linear) -> None:
        """linear: this rank's input features, without a bias unless the bias is to be added once, after the sum."""
        super().__init__()
        self.local = linear
        self.bias = linear.bias
        linear.bias = None  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., this rank's in_features]`; returns `[..., out_features]`, the same on every rank."""
        out = self.local(x)
        dist.all_reduce(out)
        return out if self.bias is None else out + self.bias


class GatheredLinear(nn.Module):
    """The head, of which every rank has some output features. Rank 0 gets all of them; the others, which do not
    sample, get a tensor of that shape without meaningful values."""

    def __init__(self, linear: nn.Linear, out_features: int, group: RankGroup) -> None:
        """linear: this rank's output features, `share(out_features, …)` of them."""
        super().__init__()
        self.local = linear
        self.out_features = out_features
        self._group = group
        self._widest = -(-out_features // group.world_size)

    @property
    def weight(self) -> torch.Tensor:
        """This rank's rows, for code that looks at the head's dtype or device."""
        return self.local.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., in_features]`; returns `[..., out_features]`."""
        part = self.local(x)
        missing = self._widest - part.shape[-1]
        if missing:
            part = nn.functional.pad(part, (0, missing))
        if not self._group.is_leader:
            dist.gather(part.contiguous(), dst=0)
            return part.new_empty(*part.shape[:-1], self.out_features)
        parts = [torch.empty_like(part) for _ in range(self._group.world_size)]
        dist.gather(part.contiguous(), parts, dst=0)
        widths = [stop - start for start, stop in _shares(self.out_features, self._group.world_size)]
        return torch.cat([part[..., :width] for part, width in zip(parts, widths, strict=True)], dim=-1)


def share(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and end of a rank's balanced, contiguous share of `total` things; the first ranks get one more."""
    base, extra = divmod(total, world_size)
    start = rank * base + min(rank, extra)
    return start, start + base + (rank < extra)


def _shares(total: int, world_size: int) -> list[tuple[int, int]]:
    return [share(total, rank, world_size) for rank in range(world_size)]


@dataclass(frozen=True)
class ModelPart:
    """What one rank has of a model."""

    model: nn.Module
    """On the CPU."""
    num_parameters: int
    """Of the whole model."""
    weight_bytes: int
    """On this rank."""


def load_part(
    model_class: type["PreTrainedModel"],
    model_config: "PretrainedConfig",
    model_path: Path,
    dtype: torch.dtype,
    group: RankGroup,
) -> ModelPart:
    """Builds this rank's part of the model. Raises ModelError for models that cannot be split, and for incomplete or
    damaged weights."""
    model = _build(model_class, model_config, dtype)
    ties = _ties(model)
    num_parameters = sum(
        parameter.numel()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in ties or ties[name] == name
    )
    splits = _plan(model, group)
    with WeightFiles(model_path, model) as files:
        weight_bytes = _load(model, files, splits, ties, dtype)
        if files.unused and group.is_leader:
            logger.warning(f"the weights have tensors that the model does not use: {_some(files.unused)}")
    for name, split in splits.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        linear.out_features, linear.in_features = linear.weight.shape
        if split.style == _ROWS:
            model.set_submodule(name, SummedLinear(linear))
        elif split.style == _HEAD:
            model.set_submodule(name, GatheredLinear(linear, split.whole, group))
    return ModelPart(model, num_parameters, weight_bytes)


@dataclass(frozen=True)
class _Split:
    """How one linear layer is split: this rank has features `part[0]` up to `part[1]` of `whole`."""

    style: str
    whole: int
    part: tuple[int, int]

    @property
    def dim(self) -> int:
        """Of the weight `[out_features, in_features]`."""
        return 1 if self.style == _ROWS else 0


def _build(
    model_class: type["PreTrainedModel"], model_config: "PretrainedConfig", dtype: torch.dtype
) -> "PreTrainedModel":
    """The model with its buffers (rotary frequencies and the like) made, and its parameters on `meta`."""
    from transformers.initialization import no_init_weights

    model_config._attn_implementation = attention.NAME
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
    """Modules that are built here keep their buffers, but no memory for their parameters."""
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


def _ties(model: "PreTrainedModel") -> dict[str, str]:
    """Of every parameter that shares its values with another: the one whose values they are, itself among them."""
    ties = dict(model.all_tied_weights_keys)
    return ties | {source: source for source in ties.values()}


def _plan(model: "PreTrainedModel", group: RankGroup) -> dict[str, _Split]:
    """By name of a linear layer, how it is split; layers that are not named are whole on every rank."""
    plan: dict[str, str] = dict(model._tp_plan or {})
    name = type(model).__name__
    if not plan:
        raise ModelError(f"{name} has no tensor-parallel plan in Transformers: it cannot be split; use --num-shard 1")
    families: dict[str, dict[str, tuple[str, nn.Linear]]] = {}
    splits = {}
    for path, module in model.named_modules():
        style = plan.get(re.sub(r"\d+", "*", path))
        if style is None or style in _WHOLE:
            continue
        if style not in (_COLUMNS, _ROWS, _HEAD) or (style == _HEAD and module is not model.get_output_embeddings()):
            raise ModelError(
                f"{name} splits {path} in the style `{style}`, which this version does not do; use --num-shard 1"
            )
        if not isinstance(module, nn.Linear):
            raise ModelError(f"{path} of {name} is a {type(module).__name__}, which cannot be split; use --num-shard 1")
        if style == _HEAD:
            splits[path] = _Split(style, module.out_features, share(module.out_features, group.rank, group.world_size))
        else:
            families.setdefault(path.rpartition(".")[0], {})[path] = (style, module)
    if not families:
        raise ModelError(f"the tensor-parallel plan of {name} names none of its layers; use --num-shard 1")
    for parent, children in families.items():
        splits |= _split_family(model.get_submodule(parent), f"{parent} of {name}", children, group)
    return splits


def _split_family(
    parent: nn.Module, where: str, children: dict[str, tuple[str, nn.Linear]], group: RankGroup
) -> dict[str, _Split]:
    """Splits the layers that belong together: those that make features or heads, and the one that takes them."""
    makers = {path: linear for path, (style, linear) in children.items() if style == _COLUMNS}
    takers = {path: linear for path, (style, linear) in children.items() if style == _ROWS}
    if not makers or len(takers) != 1:
        raise ModelError(
            f"{where} has {len(makers)} layers split by columns and {len(takers)} by rows; use --num-shard 1"
        )
    (taker,) = takers.values()
    widths = {path: linear.out_features for path, linear in makers.items()}
    widths |= {path: linear.in_features for path, linear in takers.items()}
    head_size = getattr(parent, "head_dim", None)
    if head_size is not None and hasattr(parent, "layer_idx"):
        parts = _head_parts(widths, taker.in_features, head_size, where, group)
    elif len(set(widths.values())) != 1 or taker.in_features < group.world_size:
        raise ModelError(
            f"{where} cannot be split over {group.world_size} ranks: its layers have {sorted(set(widths.values()))} "
            "features; use --num-shard 1"
        )
    else:
        granule = _GRANULE if taker.in_features % (_GRANULE * group.world_size) == 0 else 1
        start, stop = share(taker.in_features // granule, group.rank, group.world_size)
        parts = dict.fromkeys(widths, (start * granule, stop * granule))
    return {path: _Split(style, widths[path], parts[path]) for path, (style, _linear) in children.items()}


def _head_parts(
    widths: dict[str, int], query_width: int, head_size: int, where: str, group: RankGroup
) -> dict[str, tuple[int, int]]:
    """This rank's features of each layer of an attention module. KV heads stay together with their query heads; where
    there are fewer KV heads than ranks, several ranks have the same one, and share out its query heads."""
    rank, world_size = group.rank, group.world_size
    narrowest = min(widths.values())
    kv_heads = narrowest // head_size
    if kv_heads == 0 or any(width % kv_heads for width in widths.values()) or query_width % (kv_heads * head_size):
        raise ModelError(
            f"{where} cannot be split by heads: its layers have {sorted(set(widths.values()))} features for heads of "
            f"{head_size}; use --num-shard 1"
        )
    if kv_heads >= world_size:
        first, end = share(kv_heads, rank, world_size)
        return {path: (first * width // kv_heads, end * width // kv_heads) for path, width in widths.items()}
    ranks_each = world_size // kv_heads
    queries_each = query_width // (kv_heads * head_size)
    if world_size % kv_heads or queries_each < ranks_each:
        raise ModelError(
            f"{where} cannot be split over {world_size} ranks: it has {kv_heads * queries_each} query heads for "
            f"{kv_heads} KV heads; use a --num-shard of at most {kv_heads}"
        )
    kv_head, nth = divmod(rank, ranks_each)
    first, end = share(queries_each, nth, ranks_each)
    parts = {}
    for path, width in widths.items():
        step = width // kv_heads
        if width == narrowest and width != query_width:
            parts[path] = (kv_head * step, (kv_head + 1) * step)
        else:
            parts[path] = (kv_head * step + first * step // queries_each, kv_head * step + end * step // queries_each)
    return parts


def _load(
    model: "PreTrainedModel", files: WeightFiles, splits: dict[str, _Split], ties: dict[str, str], dtype: torch.dtype
) -> int:
    """Gives every parameter, and every buffer that is saved, its local values; returns their bytes."""
    wide = [re.compile(_as_pattern(pattern)) for pattern in model._get_dtype_plan(dtype)]
    missing = []
    num_bytes = 0
    owners: dict[str, torch.Tensor] = {}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    buffers = [name for name, _buffer in model.named_buffers() if name in files]
    # Owners of shared values first.
    for name in sorted([*tensors, *buffers], key=lambda name: ties.get(name, name) != name):
        split = splits.get(name.rpartition(".")[0])
        source = name if name in files else _stand_in(name, files, ties)
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
        part = _part(name, split)
        shared = owner if owner is None or part is None else owner[slice(*part)]
        if name not in files and shared is not None:
            value = shared
        else:
            value = files.read(source, 0 if split is None else split.dim, part)
            if value.is_floating_point():
                value = value.to(torch.float32 if any(pattern.search(name) for pattern in wide) else dtype)
            # Saved twice: one copy is enough where both say the same.
            if shared is not None and torch.equal(shared, value):
                value = shared
        if ties.get(name) == name:
            owners[name] = value
        if value is not shared:
            num_bytes += value.nbytes
        _assign(model, name, value)
    if missing:
        raise ModelError(f"the weights lack {_some(missing)}; the folder is incomplete, download the model again")
    return num_bytes


def _part(name: str, split: _Split | None) -> tuple[int, int] | None:
    """Which indices this rank has of a tensor, None for all. The bias of a layer split by rows is whole."""
    if split is None or (split.style == _ROWS and name.endswith(".bias")):
        return None
    return split.part


def _stand_in(name: str, files: WeightFiles, ties: dict[str, str]) -> str | None:
    """Name of a saved tensor that shares its values with one that is not saved."""
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


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
