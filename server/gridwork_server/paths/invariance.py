"""Finds out whether a request's logits depend on more than its own tokens, for people to know what to rely on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gridwork_kernels.experts import PackedExperts
from gridwork_kernels.packed_linear import PackedLinear
from gridwork_kernels.quantized_linear import QuantizedLinear

if TYPE_CHECKING:
    from gridwork_server.paths.base import ModelPath


@dataclass(frozen=True)
class Invariance:
    """Promises that logits are equal to the bit. Where nothing is promised, they may still be equal."""

    in_batch: bool
    """Equal whatever other requests are in the batch."""
    when_replayed: bool
    """Equal however a request's tokens are divided into steps: as chunks of a prompt, after a preemption or a restart,
    after a cached prefix, as drafts."""
    reason: str
    """Reason why a promise is not made; empty when both are."""


def invariance_of(path: "ModelPath", model: nn.Module, device: torch.device, world_size: int) -> Invariance:
    """Invariance of a model on its path."""
    if path.name == "solo":
        if path.recomputes_alike:
            return Invariance(True, True, "")
        return Invariance(True, False, "tokens that are computed again are computed together, which rounds otherwise")
    if not path.has_paged_attention:
        return Invariance(False, False, "PyTorch's operations round by what sequences share a step")
    reason = _of_paged(path, model, device, world_size)
    return Invariance(not reason, not reason, reason)


def _of_paged(path: "ModelPath", model: nn.Module, device: torch.device, world_size: int) -> str:
    if device.type != "cpu":
        return "a GPU's matrix products are summed in another order for another number of tokens"
    if world_size > 1:
        return "the ranks' sums are added by a library that promises no order"
    if path.attention_name != "cpu":
        return f"attention is computed by '{path.attention_name}', which rounds by what is computed beside a token"
    foreign = (
        path.foreign_operations if path.is_recorded else [*_foreign_layers(model), "what the model's own code does"]
    )
    if foreign:
        return f"{foreign[0]} is computed by PyTorch, which rounds by what is computed beside a token"
    return ""


def _foreign_layers(model: nn.Module) -> list[str]:
    """Names of layers with matrices that PyTorch multiplies by, rather than kernels of ours."""
    ours: tuple[Any, ...] = (PackedLinear, QuantizedLinear, PackedExperts, nn.Embedding)
    return [
        name
        for name, module in model.named_modules()
        if not isinstance(module, ours)
        and any(weight is not None and weight.dim() > 1 for weight in module._parameters.values())
    ]
