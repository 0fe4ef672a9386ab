"""Modules that become plain linear layers with the same output."""

import pytest
import torch
from torch import nn

from gridwork_kernels import cpu_library, packed_linear, transposed_linear


class Transposed(nn.Module):
    """GPT-2's form of a linear layer."""

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_features, out_features).to(dtype))
        self.bias = nn.Parameter(torch.randn(out_features).to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return rows.view(*x.shape[:-1], -1)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", packed_linear.DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(48, 96), (64, 64), (33, 7)], ids=str)
def test_transposed_layers_become_plain(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = Transposed(*sizes, dtype)
    model = nn.ModuleDict({"a": module, "again": module})
    x = torch.randn(2, 5, sizes[0]).to(dtype)
    expected = module(x)
    assert transposed_linear.make_plain(model) == 1
    assert type(model["a"]) is nn.Linear and model["a"] is model["again"]
    assert model["a"].weight.data_ptr() == module.weight.data_ptr(), "the same memory"
    tolerance = max(1e-5, 4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(model["a"](x), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    if cpu_library.load() is not None and sizes[1] >= packed_linear.panel_features():
        assert packed_linear.pack_linears(model) == 1
        torch.testing.assert_close(
            model["a"](x), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
        )


def test_modules_with_other_output_are_not_replaced() -> None:
    class Scaled(Transposed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1.01 * super().forward(x)

    class Straight(Transposed):
        """A square weight in the layout of a plain layer."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight, self.bias)

    class WithMore(Transposed):
        def __init__(self) -> None:
            super().__init__(32, 32)
            self.scale = nn.Parameter(torch.ones(1))

    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    class TwoInputs(Transposed):
        def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(x)

    hooked = Transposed(32, 32)
    hooked.register_forward_hook(lambda _module, _inputs, out: 2 * out)
    model = nn.ModuleDict(
        {
            "scaled": Scaled(32, 48),
            "straight": Straight(32, 32),
            "with more": WithMore(),
            "linear": nn.Linear(32, 32),
            "own": Own(32, 32),
            "two inputs": TwoInputs(32, 32),
            "hooked": hooked,
            "embedding": nn.Embedding(32, 32),
            "layer norm": nn.LayerNorm(32),
        }
    )
    before = dict(model.items())
    assert transposed_linear.make_plain(model) == 0
    assert all(model[name] is module for name, module in before.items())
