"""The compiled argmax against its plain form."""

import pytest
import torch

from gridwork_kernels import cpu_library
from gridwork_kernels.argmax import argmax, reference

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")

WIDTHS = (1, 7, 16, 4095, 4096, 4097, 49152, 128256)


@pytest.mark.parametrize("rows", [0, 1, 3, 70])
@pytest.mark.parametrize("width", WIDTHS)
def test_equals_the_plain_form(rows: int, width: int) -> None:
    logits = torch.randn(rows, width)
    _check(logits)
    _check(-logits.abs() - 1e30)
    _check(logits.round())  # many equal values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("width", WIDTHS)
def test_nan_and_infinity(value: float, width: int) -> None:
    for place in {0, width // 2, width - 1}:
        logits = torch.randn(3, width)
        logits[1, place] = value
        _check(logits)
        logits[1, width - 1] = float("nan")
        _check(logits)
    _check(torch.full((2, width), value))
    logits = torch.randn(3, width)
    logits[torch.rand(3, width) < 0.9] = value
    _check(logits)


def test_rows_with_a_stride() -> None:
    wide = torch.randn(5, 9000)
    _check(wide[:, 100:8000])
    _check(wide[::2])


def _check(logits: torch.Tensor) -> None:
    expected = reference(logits) if logits.numel() else (torch.empty(0, dtype=torch.int64), torch.empty(0))
    for got, wanted in zip(argmax(logits), expected, strict=True):
        assert got.dtype == wanted.dtype and torch.equal(got.nan_to_num(1.5), wanted.nan_to_num(1.5))
        assert torch.equal(got.isnan(), wanted.isnan())
