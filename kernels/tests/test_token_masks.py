"""The compiled form of token masks against its plain form."""

import numpy as np
import pytest
import torch

from gridwork_kernels import cpu_library
from gridwork_kernels.token_masks import forbid_tokens, num_words, reference

pytestmark = pytest.mark.skipif(cpu_library.load() is None, reason="no compiled kernels for this CPU")

WIDTHS = (1, 31, 32, 33, 131, 4096, 49152)


def random_masks(count: int, words: int) -> torch.Tensor:
    """int32 `[count, words]`: words without a bit, with all and with some of them."""
    some = torch.randint(-(2**31), 2**31 - 1, (count, words), dtype=torch.int32)
    kind = torch.randint(0, 3, (count, words))
    return torch.where(kind == 0, 0, torch.where(kind == 1, -1, some)).to(torch.int32)


def check(logits: torch.Tensor, rows: list[int], allowed: torch.Tensor) -> None:
    expected = logits.clone()
    reference(expected, torch.tensor(rows, dtype=torch.int64), allowed)
    forbid_tokens(logits, np.array(rows, dtype=np.int64), allowed)
    assert torch.equal(logits.isnan(), expected.isnan())
    assert torch.equal(logits.nan_to_num(0.5), expected.nan_to_num(0.5))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [[], [0], [4, 1], [*range(9)]], ids=str)
def test_equals_the_plain_form(width: int, rows: list[int]) -> None:
    check(torch.randn(9, width), rows, random_masks(len(rows), num_words(width)))


@pytest.mark.parametrize("more", [-1, 2])
@pytest.mark.parametrize("width", WIDTHS)
def test_masks_may_be_wider_or_narrower_than_the_logits(width: int, more: int) -> None:
    check(torch.randn(2, width), [0, 1], random_masks(2, max(0, num_words(width) + more)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity(value: float) -> None:
    logits = torch.randn(3, 131)
    logits[:, ::3] = value
    check(logits, [0, 1, 2], random_masks(3, num_words(131)))


def test_rows_with_a_stride() -> None:
    check(torch.randn(5, 900)[:, 100:800], [3, 0], random_masks(2, num_words(700)))


def test_an_allowed_token_that_a_bias_forbids_is_above_all_others() -> None:
    logits = torch.full((1, 64), -torch.inf)
    forbid_tokens(logits, np.zeros(1, dtype=np.int64), torch.tensor([[4, 0]], dtype=torch.int32))
    assert logits.argmax() == 2 and torch.isfinite(logits[0, 2])
