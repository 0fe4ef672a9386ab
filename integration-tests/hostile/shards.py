"""Faults of a group of two shards."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
from support.server import wait_for

from .faults import Faults, Scene

FAULTS = Faults()


def _signal_rank(rank: int, which: signal.Signals) -> Callable[[Scene], None]:
    def inject(scene: Scene) -> None:
        with scene.restarting(scene.shard_ids):
            os.kill(scene.shard_ids()[rank], which)

    return inject


FAULTS.add("two shards: kill -9 of rank 0")(_signal_rank(0, signal.SIGKILL))
FAULTS.add("two shards: kill -9 of rank 1")(_signal_rank(1, signal.SIGKILL))
FAULTS.add("two shards: SIGSTOP of rank 1")(_signal_rank(1, signal.SIGSTOP))
FAULTS.add("two shards: SIGSTOP of rank 0")(_signal_rank(0, signal.SIGSTOP))


@FAULTS.add("two shards: the socket of rank 1 is removed")
def _(scene: Scene) -> None:
    command = scene.server.shards()[1].cmdline()
    path = Path(command[command.index("--socket") + 1])
    path.unlink()
    wait_for(path.exists, 30, "the socket is there again")


@FAULTS.add("two shards: nothing listens but on loopback")
def _(scene: Scene) -> None:
    family = [scene.server.router(), *scene.server.shards()]
    for process in family:
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::1"), connection
