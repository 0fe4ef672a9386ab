"""A short form of `make test-hostile`: some faults, each beside requests with known right answers."""

import pytest
from hostile.__main__ import Suite

#: A hang, a removed socket, a stopped router, and clients that read nothing or send malformed data.
FAULTS = ("model code: sleeps for ever", "socket of the shard: removed", "router: SIGSTOP", "connections: 30 of")


def test_faults_do_not_harm_bystanders(tmp_path_factory: pytest.TempPathFactory) -> None:
    suite = Suite(tmp_path_factory.mktemp("hostile"), lambda name: name.startswith(FAULTS))
    rows = list(suite.rows())
    assert len(rows) >= len(FAULTS)
    bad = [(row.name, row.costs, row.failure) for row in rows if not row.is_clean]
    assert not bad, bad
