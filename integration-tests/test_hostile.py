"""A short form of `make test-hostile`: some faults, each beside requests whose right answers are known."""

import pytest
from hostile.__main__ import Suite

#: A hang, a socket that goes away, a router that stops, and clients that read nothing or send nonsense.
FAULTS = ("model code: sleeps for ever", "socket of the shard: removed", "router: SIGSTOP", "connections: 30 of")


def test_faults_cost_bystanders_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    suite = Suite(tmp_path_factory.mktemp("hostile"), lambda name: name.startswith(FAULTS))
    rows = list(suite.rows())
    assert len(rows) >= len(FAULTS)
    bad = [(row.name, row.costs, row.failure) for row in rows if not row.is_clean]
    assert not bad, bad
