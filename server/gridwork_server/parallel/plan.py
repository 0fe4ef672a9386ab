"""Plans which part of each parameter a rank has, by Transformers' own tensor-parallel plan of the model.

The plan names modules and parameters, each with a style. Layers that belong together have one parent: those that
produce features and the one that consumes them. They are split alike, by attention heads or by features.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gridwork_server.errors import ModelError
from gridwork_server.parallel.check import features_are_independent, gate_layout
from gridwork_server.parallel.group import RankGroup
from gridwork_server.parallel.heads import Heads, head_size, unplanned_head_parameter
from gridwork_server.parallel.modules import (
    GatheredHead,
    GatheredLinear,
    SummedLinear,
    divide_inputs,
    gather_outputs,
    share,
    sum_outputs,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COLUMNS, _ROWS = "colwise", "rowwise"
_PACKED_COLUMNS, _PACKED_ROWS = "packed_colwise", "packed_rowwise"
_FEATURES = (_COLUMNS, _ROWS, _PACKED_COLUMNS, _PACKED_ROWS)
"""Styles of layers and parameters that are split together with others of their module."""

_SUMMED = ("moe_tp_experts", "all_reduce")
"""Styles of modules with parameters of their own, whose results are summed over the ranks."""

_GATHERED_OUTPUT = ("colwise_gather_output", "colwise_rep")
_SPLIT_INPUT = ("rowwise_split_input", "rowwise_rep")

_WHOLE = (
    "replicated_with_grad_allreduce",
    "replicate",
    "mla_kv_a_proj",
    "local_params",
    "embedding_rowwise",
)
"""Styles of modules that are whole on every rank; some of them matter only for training. Embeddings are whole too: a
lookup costs nothing, and no sum is needed."""

_MULTIPLES = (32, 16, 8, 4, 1)
"""Features are split in multiples of the first of these that divides evenly: vector units and weight panels work in
multiples of these."""


@dataclass(frozen=True)
class Part:
    """One rank's part of a tensor: the index ranges `ranges`, concatenated, along `dim`."""

    dim: int
    ranges: tuple[tuple[int, int], ...]

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of a whole tensor; a view when it is one range."""
        pieces = [tensor.narrow(self.dim, start, stop - start) for start, stop in self.ranges]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self.dim)


@dataclass
class Splits:
    """Split of a model: parts of its parameters, changes and notes."""

    parts: dict[str, Part] = field(default_factory=dict)
    """Part of each parameter, by name; parameters without an entry are whole on every rank."""
    changes: list[Callable[[], None]] = field(default_factory=list)
    """Changes to apply to the model after its parameters have been loaded."""
    notes: list[str] = field(default_factory=list)
    """Modules that are whole on every rank although the plan splits them, with the reason."""


def plan(model: "PreTrainedModel", group: RankGroup) -> Splits:
    """Decides this rank's parts. model: may be on `meta`. Raises ModelError for models that cannot be split."""
    return _Planner(model, group).plan()


@dataclass(frozen=True)
class _Named:
    """A linear layer or a parameter that the plan names."""

    path: str
    style: str
    value: nn.Linear | nn.Parameter

    @property
    def name(self) -> str:
        """Name within its module."""
        return self.path.rpartition(".")[2]

    @property
    def weight(self) -> torch.Tensor:
        return self.value.weight if isinstance(self.value, nn.Linear) else self.value

    @property
    def dim(self) -> int:
        """Dimension along which the weight is split: of `[..., out_features, in_features]`, or 0 for one dimension."""
        if self.weight.dim() == 1:
            return 0
        return self.weight.dim() - (2 if self.style in (_COLUMNS, _PACKED_COLUMNS, *_GATHERED_OUTPUT) else 1)

    @property
    def width(self) -> int:
        return self.weight.shape[self.dim]


class _Planner:
    def __init__(self, model: "PreTrainedModel", group: RankGroup) -> None:
        self._model = model
        self._group = group
        self._name = type(model).__name__
        self._splits = Splits()

    def plan(self) -> Splits:
        styles: dict[str, str] = dict(self._model._tp_plan or {})
        if not styles:
            raise self._refusal("has no tensor-parallel plan in Transformers: it cannot be split")
        families: dict[str, list[_Named]] = {}
        alone: dict[str, list[_Named]] = {}
        summed: set[str] = set()
        things: list[tuple[str, Any]] = [*self._model.named_modules(), *self._model.named_parameters()]
        for path, thing in things:
            style = styles.get(_plan_path(path), "replicate")
            parent = path.rpartition(".")[0]
            if style in _WHOLE:
                continue
            if style in _FEATURES and isinstance(thing, nn.Linear | nn.Parameter):
                families.setdefault(parent, []).append(_Named(path, style, thing))
            elif style in _SUMMED and isinstance(thing, nn.Module):
                summed.add(path)
            elif style == "moe_identity_expert" and isinstance(thing, nn.Module):
                self._splits.changes.append(partial(divide_inputs, thing, self._group.world_size))
            elif style in (*_GATHERED_OUTPUT, *_SPLIT_INPUT) and isinstance(thing, nn.Linear):
                alone.setdefault(parent, []).append(_Named(path, style, thing))
            elif style == "embedding_colwise" and isinstance(thing, nn.Embedding):
                self._split_embedding(path, thing)
            else:
                raise self._refusal(
                    f"splits {path}, a {type(thing).__name__}, in the style `{style}`, which this version does not do"
                )
        for parent, members in families.items():
            module = self._model.get_submodule(parent)
            if parent in summed:
                self._split_summed(parent, module, members)
            elif head_size(module) is not None:
                self._split_heads(parent, module, members)
            else:
                self._split_layers(parent, module, members)
        head = self._model.get_output_embeddings()
        for parent, members in alone.items():
            if not self._split_packed(parent, members):
                for member in members:
                    self._split_alone(member, is_head=member.value is head)
        if all(getattr(head, "weight", None) is self._parameter(name) for name in self._splits.parts):
            why = f": {self._splits.notes[0]}" if self._splits.notes else ""
            raise self._refusal(f"has a tensor-parallel plan that splits none of its layers{why}")
        return self._splits

    def _parameter(self, name: str) -> nn.Parameter:
        return self._model.get_parameter(name)

    def _refusal(self, what: str) -> ModelError:
        return ModelError(f"{self._name} {what}; use --num-shard 1")

    def _split_alone(self, named: _Named, is_head: bool) -> None:
        """Splits a layer that is given all features and whose result every rank gets."""
        linear = named.value
        assert isinstance(linear, nn.Linear)
        whole = named.width
        part = share(whole, self._group.rank, self._group.world_size)
        if whole < self._group.world_size:
            return  # too small to matter
        self._add(named, (part,))
        if named.style in _SPLIT_INPUT:
            self._replace(named.path, partial(SummedLinear, linear, part))
        elif is_head:
            self._replace(named.path, partial(GatheredHead, linear, whole, self._group))
        else:
            self._replace(named.path, partial(GatheredLinear, linear, whole, self._group))

    def _split_embedding(self, path: str, embedding: nn.Embedding) -> None:
        features = embedding.embedding_dim
        self._splits.parts[f"{path}.weight"] = Part(1, (share(features, self._group.rank, self._group.world_size),))
        self._splits.changes.append(partial(gather_outputs, embedding, features, self._group))

    def _split_summed(self, parent: str, module: nn.Module, members: list[_Named]) -> None:
        """Splits experts: every rank has some of the intermediate features of each."""
        where = f"{parent} of {self._name}"
        if getattr(module, "has_post_expert_norm", False):
            raise ModelError(f"{where} cannot be split: each expert's result is normalised; use --num-shard 1")
        named = {member.path for member in members}
        unnamed = [name for name, _p in module.named_parameters(prefix=parent, recurse=False) if name not in named]
        if unnamed:
            raise ModelError(
                f"{where} cannot be split: the plan does not say how to split {', '.join(unnamed)}; use --num-shard 1"
            )
        layout = gate_layout(module)
        if layout == "mixed":
            raise ModelError(f"{where} cannot be split: its features depend on each other; use --num-shard 1")
        start, stop, whole = self._split_features(where, members, layout)
        for attribute, value in vars(module).items():
            if value == whole and re.search(r"intermediate|expert_dim|ffn|^moe_.*(dim|size)$", attribute):
                self._splits.changes.append(partial(setattr, module, attribute, stop - start))
        self._splits.changes.append(partial(sum_outputs, module))

    def _split_layers(self, parent: str, module: nn.Module, members: list[_Named]) -> None:
        """Splits the linear layers of an MLP."""
        where = f"{parent} of {self._name}"
        consumer = self._consumer(members)
        producers = {member.name: 1 for member in members if member is not consumer}
        if consumer is None or not producers:
            return self._leave_whole(parent, self._describe_layers(members))
        independent = features_are_independent(module, producers, consumer.name)
        if independent is None:
            return self._leave_whole(parent, "it does not run with a part of its features")
        if not independent:
            return self._leave_whole(parent, "its features depend on each other")
        self._split_features(where, members)

    def _split_packed(self, parent: str, members: list[_Named]) -> bool:
        """Splits packed gates and values: layers whose outputs the plan gathers, but whose features turn out to be
        independent. Returns whether they are."""
        consumers = [member for member in members if member.style in _SPLIT_INPUT]
        producers = [member for member in members if member.style in _GATHERED_OUTPUT]
        if len(consumers) != 1 or not producers or any(producer.width % consumers[0].width for producer in producers):
            return False
        packs = {producer.name: producer.width // consumers[0].width for producer in producers}
        module = self._model.get_submodule(parent)
        if head_size(module) is not None or not features_are_independent(module, packs, consumers[0].name):
            return False
        whole = consumers[0].width
        start, stop = self._share_features(f"{parent} of {self._name}", whole)
        for producer in producers:
            packed = [(pack * whole + start, pack * whole + stop) for pack in range(packs[producer.name])]
            self._add(producer, tuple(packed))
        self._add(consumers[0], ((start, stop),))
        self._replace_consumer(consumers[0])
        return True

    def _split_features(self, where: str, members: list[_Named], layout: str | None = None) -> tuple[int, int, int]:
        """Splits the layers that produce features and the one that consumes them. layout: of gates and values, where it
        was found by trying; otherwise the plan's style tells the layout of the weights' files. Returns this rank's
        first feature, the end of its range, and the number of all features."""
        consumer = self._consumer(members)
        if consumer is None:
            raise ModelError(f"{where} cannot be split: it has {self._describe_layers(members)}; use --num-shard 1")
        whole = consumer.width
        start, stop = self._share_features(where, whole)
        for member in members:
            packs = member.width / whole
            packed = (layout == "halves") if layout else "packed" in member.style
            if member is consumer or packs == 1:
                self._add(member, ((start, stop),))
            elif packs == 2 and isinstance(member.value, nn.Parameter):
                in_halves = ((start, stop), (whole + start, whole + stop))
                self._add(member, in_halves if packed else ((2 * start, 2 * stop),))
            else:
                raise ModelError(
                    f"{where} cannot be split: its layers have {sorted({member.width for member in members})} "
                    "features; use --num-shard 1"
                )
        self._replace_consumer(consumer)
        return start, stop, whole

    def _share_features(self, where: str, whole: int) -> tuple[int, int]:
        world_size = self._group.world_size
        if whole < world_size:
            raise ModelError(
                f"{where} cannot be split over {world_size} ranks: its layers have {whole} features; use --num-shard 1"
            )
        multiple = next(g for g in _MULTIPLES if whole % (g * world_size) == 0 or g == 1)
        start, stop = share(whole // multiple, self._group.rank, world_size)
        return start * multiple, stop * multiple

    def _split_heads(self, parent: str, module: nn.Module, members: list[_Named]) -> None:
        """Splits an attention module: KV heads stay together with their query heads."""
        where = f"{parent} of {self._name}"
        consumer = self._consumer(members)
        if consumer is None or len(members) < 2:
            return self._leave_whole(parent, self._describe_layers(members))
        heads = Heads.of(module, consumer.width)
        if heads is None or any(member.width % heads.num_kv_heads for member in members):
            widths = sorted({member.width for member in members})
            return self._leave_whole(parent, f"its layers have {widths} features for heads of {head_size(module)}")
        if whole := unplanned_head_parameter(module, {member.name for member in members}, heads):
            return self._leave_whole(parent, f"the plan does not say how to split its `{whole}`")
        for member in members:
            self._add(member, (heads.part(member.width, where, self._group),))
        self._set_local_head_counts(module, heads, where)
        self._replace_consumer(consumer)

    def _leave_whole(self, parent: str, why: str) -> None:
        note = f"{_plan_path(parent)} of {self._name} is whole on every rank: {why}"
        if note not in self._splits.notes:
            self._splits.notes.append(note)

    def _set_local_head_counts(self, module: nn.Module, heads: Heads, where: str) -> None:
        """Adjusts attributes that hold numbers of heads: modules reshape their tensors by them."""
        start, stop = heads.part(heads.num_heads, where, self._group)
        kv_heads = max(heads.num_kv_heads * (stop - start) // heads.num_heads, 1)
        for attribute, value in vars(module).items():
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            if attribute == "num_key_value_groups":
                self._splits.changes.append(partial(setattr, module, attribute, (stop - start) // kv_heads))
            elif re.fullmatch(r"(num_|n_)(key_value_|kv_)heads?|(num_|n_)heads?_kv|kv_(num_|n_)?heads", attribute):
                if value == heads.num_kv_heads:
                    self._splits.changes.append(partial(setattr, module, attribute, kv_heads))
            elif re.fullmatch(r"(num_|n_)(attention_|query_|q_)?heads?", attribute) and value == heads.num_heads:
                self._splits.changes.append(partial(setattr, module, attribute, stop - start))

    @staticmethod
    def _consumer(members: list[_Named]) -> _Named | None:
        """The layer that consumes the features that the others produce; None when there is not exactly one."""
        # Only transposed weights, `[..., in_features, out_features]`, are packed along rows.
        transposed = any(member.style == _PACKED_ROWS for member in members)
        consumers = [member for member in members if member.style == (_COLUMNS if transposed else _ROWS)]
        return consumers[0] if len(consumers) == 1 else None

    @staticmethod
    def _describe_layers(members: list[_Named]) -> str:
        columns = sum(member.style in (_COLUMNS, _PACKED_COLUMNS) for member in members)
        return f"{columns} layers split by columns and {len(members) - columns} by rows"

    def _add(self, member: _Named, ranges: tuple[tuple[int, int], ...]) -> None:
        part = Part(member.dim, ranges)
        if not isinstance(member.value, nn.Linear):
            self._splits.parts[member.path] = part
            return
        self._splits.parts[f"{member.path}.weight"] = part
        # The bias of a layer that is split by its input features is added once, whole.
        if part.dim == 0 and member.value.bias is not None:
            self._splits.parts[f"{member.path}.bias"] = part

        linear = member.value

        def measure() -> None:
            linear.out_features, linear.in_features = linear.weight.shape

        self._splits.changes.append(measure)

    def _replace_consumer(self, consumer: _Named) -> None:
        linear = consumer.value
        if isinstance(linear, nn.Linear):
            self._replace(consumer.path, partial(SummedLinear, linear))

    def _replace(self, path: str, make: Callable[[], nn.Module]) -> None:
        self._splits.changes.append(lambda: self._model.set_submodule(path, make()))


def _plan_path(path: str) -> str:
    """The path as plans write it, with `*` for the numbers of layers."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)
