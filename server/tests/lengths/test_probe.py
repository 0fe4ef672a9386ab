"""Tests the rules found for modules that take positions, or the length of a call."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from gridwork_server.lengths.probe import (
    LengthRule,
    common_rule,
    lengths_to_try,
    rule_of,
    watch_positions,
)


class Rotary(nn.Module):
    """Frequencies that depend on the longest position; counts its calls, and remembers the longest."""

    def __init__(self, factor: Callable[[int], float]) -> None:
        super().__init__()
        self._factor = factor
        self.num_calls, self.longest = 0, 0
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1, 0.01]), persistent=False)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.num_calls += 1
        self.longest = max(self.longest, int(position_ids.max()) + 1)
        self.frequencies.div_(self._factor(self.longest))
        angles = position_ids[..., None] * self.frequencies
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class Table(nn.Module):
    """Gives one wide row for each token of the call, the same rows for all lengths."""

    longest = 0

    def forward(self, length: int) -> torch.Tensor:
        Table.longest = max(Table.longest, length)
        return torch.zeros(1).expand(length, 4096)


class Model(nn.Module):
    """Calls a module with the positions of its tokens, in the way that `by` names."""

    def __init__(self, inner: nn.Module, by: str) -> None:
        super().__init__()
        self.inner, self._by = inner, by

    def forward(self, input_ids: torch.Tensor) -> None:
        hidden, positions = torch.zeros(1, 1, 4), torch.arange(input_ids.shape[1])[None]
        if self._by == "name":
            self.inner(hidden, position_ids=positions)
        elif self._by == "place":
            self.inner(hidden, positions + 1)
        else:
            self.inner(input_ids.shape[1])


def rules(inner: nn.Module, by: str, lengths: list[int]) -> list[LengthRule | None]:
    model = Model(inner, by)
    with watch_positions(model, 10) as watch:
        model(torch.zeros(1, 10, dtype=torch.int64))
    return [rule_of(call, lengths) for call in watch.calls]


FACTORS: dict[str, tuple[Callable[[int], float], LengthRule | None]] = {
    "none": (lambda _: 1.0, None),
    "a limit that no config names": (lambda n: 1.0 if n <= 777 else 3.0, LengthRule(777, apart=False)),
    "every length": (lambda n: max(1.0, n / 100), LengthRule(100, apart=True)),
    "two limits": (lambda n: 1.0 if n <= 50 else 2.0 if n <= 3000 else 4.0, LengthRule(50, apart=True)),
}


@pytest.mark.parametrize("by", ["name", "place"])
@pytest.mark.parametrize("name", FACTORS)
def test_rule_tells_where_results_change_and_how_often(name: str, by: str) -> None:
    factor, rule = FACTORS[name]
    inner = Rotary(factor)
    lengths = lengths_to_try(PretrainedConfig(max_position_embeddings=2048))
    assert rules(inner, by, lengths) == [rule]
    # The module's state is as it was before the first call.
    assert (inner.num_calls, inner.longest, inner.frequencies.tolist()) == (0, 0, torch.tensor([1, 0.1, 0.01]).tolist())


def test_large_tables_end_the_search() -> None:
    lengths = lengths_to_try(PretrainedConfig(max_position_embeddings=262_144))
    assert rules(Table(), "length", lengths) == [None]
    assert 8192 <= Table.longest < 20_000


def test_lengths_to_try_lie_around_numbers_in_the_config() -> None:
    config = PretrainedConfig(max_position_embeddings=600, vocab_size=50_000, rope_parameters={"original": 77})
    lengths = lengths_to_try(config)
    assert {76, 77, 78, 79, 599, 600, 601, 602, 64, 1024, 2048} <= set(lengths)
    assert max(lengths) <= 4 * 600
    assert lengths == sorted(set(lengths))


def test_common_rule_separates_whatever_any_rule_does() -> None:
    one, other = LengthRule(64, apart=False), LengthRule(32, apart=False)
    assert common_rule([]) is None
    assert common_rule([one, one]) == one
    assert common_rule([one, other]) == LengthRule(32, apart=True)
    assert common_rule([one, LengthRule(64, apart=True)]) == LengthRule(64, apart=True)
