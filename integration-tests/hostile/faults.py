"""Faults, and the measurement of their cost to bystanders."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.server import Server, wait_for

from .traffic import Costs, Traffic, recovery_s, until_idle
from .trap import Trap


@dataclass
class Scene:
    """A running server, with the data that faults need."""

    server: Server
    trap: Trap | None
    right: list[list[int]]
    """Answers to the prompts of bystanders."""
    temporary: Path
    """Folder in which the launcher makes its own."""

    @property
    def port(self) -> int:
        return self.server.port

    def restarts(self) -> float:
        """Number of restarts of shards, as counted by the router."""
        return self.server.client.metric("gridwork_shard_restarts_total")

    def obey(self, order: str, timeout_s: float = 10.0) -> None:
        """Orders the model to misbehave, and waits until it begins."""
        assert self.trap is not None
        self.trap.order(order)
        wait_for(self.trap.was_obeyed, timeout_s, f"the model obeys {order!r}")

    @contextmanager
    def restarting(self, what: Callable[[], list[int]], timeout_s: float = 60.0) -> Iterator[None]:
        """Waits at the end until new processes have replaced all of the present ones."""
        before = what()
        yield
        wait_for(
            lambda: len(after := what()) == len(before) and not set(after) & set(before),
            timeout_s,
            "other processes run",
        )

    def restart_by_signal(self, what: Callable[[], list[int]], number: int) -> None:
        """Sends a signal to the first process, after which new ones must replace all."""
        with self.restarting(what):
            os.kill(what()[0], number)

    def shard_ids(self) -> list[int]:
        return [process.pid for process in self.server.shards()]

    def router_ids(self) -> list[int]:
        try:
            return [self.server.router().pid]
        except AssertionError:
            return []


@dataclass(frozen=True)
class Fault:
    """An action against a server that bystanders use."""

    name: str
    inject: Callable[[Scene], None]
    """Performs the fault and checks its visible effects. Raises AssertionError."""
    cuts_connections: bool = False
    """True if bystanders have to repeat their requests, since the router, which holds them, dies."""


@dataclass
class Row:
    """One line of the table."""

    name: str
    costs: Costs
    recovered_s: float | None = None
    failure: str = ""

    @property
    def is_clean(self) -> bool:
        costs = self.costs
        return not (costs.lost or costs.doubled or costs.wrong or self.failure or self.recovered_s is None)


class Faults:
    """Collects the faults of a scene: `@faults.add("name")`."""

    def __init__(self) -> None:
        self.all: list[Fault] = []

    def add(self, name: str, cuts_connections: bool = False) -> Callable[[Callable[[Scene], None]], None]:
        """Registers a function as a fault."""

        def register(inject: Callable[[Scene], None]) -> None:
            self.all.append(Fault(name, inject, cuts_connections))

        return register

    def restart(
        self, name: str, what: Callable[[Scene], list[int]], number: int, cuts_connections: bool = False
    ) -> None:
        """Registers the fault of a signal to a process, after which a new one must replace it."""
        self.add(name, cuts_connections)(lambda scene: scene.restart_by_signal(lambda: what(scene), number))


def run_fault(scene: Scene, fault: Fault) -> Row:
    """Injects a fault while bystanders run; returns its row of the table."""
    traffic = Traffic(scene.server, scene.right, fault.cuts_connections)
    row = Row(fault.name, traffic.costs)
    num_lines = len(scene.server.lines)
    try:
        traffic.start()
        fault.inject(scene)
    except Exception as error:
        row.failure = f"{type(error).__name__}: {error}"
    row.recovered_s = recovery_s(scene.server, scene.right[0])
    traffic.finish()
    try:
        until_idle(scene.server)
        assert scene.server.client.metric("gridwork_scheduler_integrity_violations_total") == 0, "integrity"
    except Exception as error:
        row.failure = row.failure or f"{type(error).__name__}: {error}"
    if not row.is_clean:
        told = [line for line in scene.server.lines[num_lines:] if " ERROR " in line or " WARN " in line]
        row.failure = "\n    ".join([row.failure or "-", *told[-6:]])
    return row
