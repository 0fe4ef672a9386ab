"""RMS norms with a gate: the kernel beside its plain form, and modules of Transformers that it replaces."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from gridwork_kernels import cpu_attention, gated_norm
from gridwork_kernels.gated_norm import Form, FusedGatedNorm
from gridwork_kernels.program_table import ACTIVATIONS
from gridwork_kernels.replace import equal_up_to_rounding, sample_values

pytestmark = pytest.mark.skipif(not cpu_attention.supports(torch.float32), reason="no compiled kernels for this CPU")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = list(itertools.product((True, False), ("silu", "sigmoid"), (True, False)))


class Norm(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter((sample_values(width) + 1.5).to(dtype))
        self.eps = 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("gate_first", "activation", "float32_out"), KINDS)
@pytest.mark.parametrize(("width", "group"), [(64, 64), (96, 32), (35, 7)])
def test_the_kernel_computes_its_plain_form(
    gate_first: bool, activation: str, float32_out: bool, width: int, group: int, dtype: torch.dtype
) -> None:
    form = Form(gate_first, ACTIVATIONS[activation], group, float32_out)
    module = Norm(width, dtype)
    # Parts of wider rows.
    x, gate = (sample_values(5, 3, width + 9)[..., 4 : 4 + width] * scale for scale in (2.0, 3.0))
    for values in {x.dtype: x, dtype: x.to(dtype)}.values():
        got = FusedGatedNorm(module, 1e-5, form)(values, gate.to(dtype))
        expected = gated_norm.reference(values, gate.to(dtype), module.weight, 1e-5, form)
        assert equal_up_to_rounding(got, expected, 2)


def test_without_a_gate_or_with_another_dtype_the_plain_module_computes() -> None:
    class Plain(Norm):
        def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            return x + 1 if gate is None else x + 2

    fused = FusedGatedNorm(Plain(8, torch.float32), 1e-5, Form(True, ACTIVATIONS["silu"], 8, False))
    x = torch.zeros(2, 8)
    assert torch.equal(fused(x), x + 1) and torch.equal(fused(x, x.to(torch.bfloat16)), x + 2)


def modules(dtype: torch.dtype) -> dict[str, nn.Module]:
    from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridRMSNormGated
    from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

    made: dict[str, nn.Module] = {
        "granite": GraniteMoeHybridRMSNormGated(96, 48, eps=1e-5),
        "mamba2": MambaRMSNormGated(96, 96, eps=1e-5),
        "qwen3_next": Qwen3NextRMSNormGated(32, eps=1e-6),
    }
    for module in made.values():
        nn.init.uniform_(module.weight, 0.5, 1.5)  # type: ignore[arg-type]
    return {name: module.to(dtype) for name, module in made.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_transformers_are_replaced(dtype: torch.dtype) -> None:
    model = nn.ModuleDict(modules(dtype))
    plain: dict[str, Any] = dict(model)
    assert gated_norm.fuse_gated_norms(model) == len(plain)
    for name, fused in model.items():
        assert isinstance(fused, FusedGatedNorm) and fused.form.gate_first == (name != "qwen3_next")
        width = len(fused.weight)
        x, gate = sample_values(1, 9, width) * 3, (sample_values(1, 9, width + 1)[..., 1:] * 2).to(dtype)
        for values in (x, x.to(dtype)):
            assert equal_up_to_rounding(fused(values, gate), plain[name](values, gate), 2), name


class Doubled(Norm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        form = Form(True, ACTIVATIONS["silu"], x.shape[-1], False)
        return 2 * gated_norm.reference(x, gate, self.weight, self.eps, form)


class OtherEps(Norm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        form = Form(True, ACTIVATIONS["silu"], x.shape[-1], False)
        return gated_norm.reference(x, gate, self.weight, 10 * self.eps, form)


def test_modules_that_compute_something_else_stay() -> None:
    assert gated_norm.fuse_gated_norms(nn.ModuleList([Doubled(16, torch.float32), OtherEps(16, torch.float32)])) == 0
