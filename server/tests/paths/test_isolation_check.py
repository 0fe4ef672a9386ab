"""Tests how ranks act together when one of them finds a dependence."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gridwork_server.errors import PathError
from gridwork_server.paths import isolation_check
from gridwork_server.paths.isolation_check import IsolationCheck


@pytest.mark.parametrize("is_leader", [True, False])
def test_every_rank_runs_all_checks(is_leader: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks than 0 have no whole logits to compare; if they stopped, rank 0 would wait for their part of the
    sums."""
    computed: list[str] = []

    def neighbours(*_: Any) -> None:
        computed.append("neighbours")
        raise PathError("of neighbours")

    group: Any = SimpleNamespace(is_leader=is_leader, minimum=lambda value: value)
    caller: Any = SimpleNamespace(lengths=None)
    monkeypatch.setattr(isolation_check, "check_neighbours", neighbours)
    check = IsolationCheck(caller, torch.float32, np.arange(8), group)
    check._crossing = SimpleNamespace(check=lambda _: computed.append("crossing"))  # type: ignore[assignment]
    path: Any = None
    if is_leader:
        with pytest.raises(PathError, match="of neighbours"):
            check.check(path)
    else:
        check.check(path)
    assert computed == ["neighbours", "crossing"]
