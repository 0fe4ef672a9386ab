"""What a request's logits depend on besides its own tokens, by path: for people to know what they can rely on."""

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
    """Whether logits are the same to the bit. What is not promised may still hold."""

    in_batch: bool
    """Whatever other requests run beside a request."""
    when_replayed: bool
    """However a request's tokens are divided into steps: as chunks of a prompt, after a preemption or a restart, behind
    a cached prefix, as drafts."""
    reason: str
    """Why not; empty when both hold."""


def invariance_of(path: "ModelPath", model: nn.Module, device: torch.device, world_size: int) -> Invariance:
    """What holds for a model on its path."""
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
    products = path.foreign_products if path.is_recorded else _foreign_layers(model)
    if products:
        return f"{products[0]} is computed by PyTorch, which rounds by what is computed beside a token"
    return ""


def _foreign_layers(model: nn.Module) -> list[str]:
    """Layers with matrices that no kernel of ours multiplies by."""
    ours: tuple[Any, ...] = (PackedLinear, QuantizedLinear, PackedExperts, nn.Embedding)
    return [
        name
        for name, module in model.named_modules()
        if not isinstance(module, ours)
        and any(weight is not None and weight.dim() > 1 for weight in module._parameters.values())
    ]
