"""Modules that are split over the ranks, and the collectives that combine their results."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gridwork_server.parallel.group import RankGroup


def share(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and end of a rank's balanced, contiguous share of `total` items; the first ranks get one more."""
    base, extra = divmod(total, world_size)
    start = rank * base + min(rank, extra)
    return start, start + base + (rank < extra)


class SummedLinear(nn.Module):
    """A linear layer whose input features are split over the ranks; the ranks' results are summed."""

    def __init__(self, linear: nn.Linear, taken: tuple[int, int] | None = None) -> None:
        """linear: has this rank's input features; its bias is added once, after the sum. taken: range of these features
        in the whole input, when every rank is given all of it; None when a rank is given only its own."""
        super().__init__()
        self.local = linear
        self.bias = linear.bias
        linear.bias = None  # type: ignore[assignment]
        self._taken = taken

    @property
    def weight(self) -> torch.Tensor:
        """This rank's columns, for code that reads the layer's dtype or device."""
        return self.local.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., in_features]` as this rank is given them; returns `[..., out_features]`, the same on every rank."""
        if self._taken is not None:
            x = x[..., slice(*self._taken)]
        out = self.local(x)
        dist.all_reduce(out)
        return out if self.bias is None else out + self.bias


class GatheredLinear(nn.Module):
    """A linear layer whose output features are split over the ranks; every rank gets all of them."""

    def __init__(self, linear: nn.Linear, out_features: int, group: RankGroup) -> None:
        """linear: has this rank's output features, `share(out_features, …)`."""
        super().__init__()
        self.local = linear
        self.out_features = out_features
        self._group = group

    @property
    def weight(self) -> torch.Tensor:
        """This rank's rows, for code that reads the layer's dtype or device."""
        return self.local.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., in_features]`; returns `[..., out_features]`."""
        return gather_features(self.local(x), self.out_features, self._group)


class GatheredHead(GatheredLinear):
    """The output projection over the vocabulary. Rank 0 gets all output features. The other ranks do not sample: they
    get a tensor of that shape without meaningful values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: `[..., in_features]`; returns `[..., out_features]`."""
        part = _padded(self.local(x), self.out_features, self._group)
        if not self._group.is_leader:
            dist.gather(part, dst=0)
            return part.new_empty(*part.shape[:-1], self.out_features)
        parts = [torch.empty_like(part) for _ in range(self._group.world_size)]
        dist.gather(part, parts, dst=0)
        return _joined(parts, self.out_features)


def gather_features(part: torch.Tensor, features: int, group: RankGroup) -> torch.Tensor:
    """Joins the ranks' parts `[..., share of the features]` into `[..., features]`, the same on every rank."""
    part = _padded(part, features, group)
    parts = [torch.empty_like(part) for _ in range(group.world_size)]
    dist.all_gather(parts, part)
    return _joined(parts, features)


def _padded(part: torch.Tensor, features: int, group: RankGroup) -> torch.Tensor:
    """Pads a part to the width of the widest rank's: collectives need tensors of one shape."""
    missing = -(-features // group.world_size) - part.shape[-1]
    return (nn.functional.pad(part, (0, missing)) if missing else part).contiguous()


def _joined(parts: list[torch.Tensor], features: int) -> torch.Tensor:
    shares = [share(features, rank, len(parts)) for rank in range(len(parts))]
    return torch.cat([part[..., : stop - start] for part, (start, stop) in zip(parts, shares, strict=True)], dim=-1)


def sum_outputs(module: nn.Module) -> None:
    """Sums the module's output over the ranks."""

    def hook(_module: nn.Module, _arguments: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.contiguous()
        dist.all_reduce(out)
        return out

    module.register_forward_hook(hook)


def gather_outputs(module: nn.Module, features: int, group: RankGroup) -> None:
    """Joins the module's output, this rank's share of the features, with the other ranks' shares."""
    hook: Callable[..., torch.Tensor] = lambda _module, _arguments, out: gather_features(out, features, group)  # noqa: E731
    module.register_forward_hook(hook)


def divide_inputs(module: nn.Module, world_size: int) -> None:
    """Divides the module's first input by the number of ranks: every rank computes the whole, and the sum adds up."""
    module.register_forward_pre_hook(lambda _module, arguments: (arguments[0] / world_size, *arguments[1:]))
