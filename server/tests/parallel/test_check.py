"""Tests what computing with a small copy of a module finds out."""

import pytest
import torch
from torch import nn

from gridwork_server.parallel.check import features_are_independent, gate_layout


class Gated(nn.Module):
    """An MLP with gates and values in one layer. kind: how the features depend on each other."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        with torch.device("meta"):
            self.gate_up_proj = nn.Linear(64, 2 * 96)
            self.down_proj = nn.Linear(96, 64)
            self.slope = nn.PReLU()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.gate_up_proj(x)
        if self.kind == "sized":
            both = both.view(-1, 192)
        gate, up = (both[..., ::2], both[..., 1::2]) if self.kind == "pairs" else both.chunk(2, dim=-1)
        if self.kind == "normed":
            gate = gate / gate.norm(dim=-1, keepdim=True)
        return self.down_proj(self.slope(gate) * up)


@pytest.mark.parametrize(
    ("kind", "independent"), [("halves", True), ("pairs", False), ("normed", False), ("sized", None)]
)
def test_independent_packed_features_are_recognized(kind: str, independent: bool | None) -> None:
    assert features_are_independent(Gated(kind), {"gate_up_proj": 2}, "down_proj") is independent


class Experts(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def _apply_gate(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = (x[..., ::2], x[..., 1::2]) if self.kind == "pairs" else x.chunk(2, dim=-1)
        return gate.softmax(dim=-1) * up if self.kind == "mixed" else torch.sigmoid(gate) * up


@pytest.mark.parametrize(("kind", "layout"), [("halves", "halves"), ("pairs", "pairs"), ("mixed", "mixed")])
def test_layout_of_gates_and_values_is_found(kind: str, layout: str) -> None:
    assert gate_layout(Experts(kind)) == layout
