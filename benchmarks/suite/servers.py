"""Starts a server, waits for its first token, and ends all of its processes."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import aiohttp
import psutil

from suite.load import RequestFailed, Turn, run_load
from suite.paths import ROOT

START_TIMEOUT_S = 1200


@dataclass(frozen=True)
class Contestant:
    name: str
    command: list[str]  # without `--port`
    model: str  # `model` of the requests
    env: dict[str, str] = field(default_factory=dict)  # in addition to this process's


class ServerFailed(RuntimeError):
    """A server ended or was not ready in time; the message holds its last log line."""


@dataclass(frozen=True)
class Running:
    url: str
    ready_s: float  # from the command to its first token
    pid: int
    log: IO[str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(own: dict[str, str]) -> dict[str, str]:
    """This process's environment with a contestant's own variables. OMP_WAIT_POLICY is left out: `make` sets it for its
    tests, and each contestant has its own default."""
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    return inherited | {"HF_HUB_OFFLINE": "1"} | own


@contextmanager
def running(contestant: Contestant) -> Iterator[Running]:
    """Starts a server and yields it once it has answered with one token. At the end it is stopped with all processes of
    its session. Raises `ServerFailed`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(contestant.env)
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        # In a session of its own, by which `family` finds processes whose parent has ended.
        process = subprocess.Popen(
            [*contestant.command, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            _wait_for_first_token(contestant, process, url, started, log)
            yield Running(url, time.perf_counter() - started, process.pid, log)
        finally:
            _end(process)


def _wait_for_first_token(
    contestant: Contestant, process: "subprocess.Popen[bytes]", url: str, started: float, log: IO[str]
) -> None:
    while True:
        try:
            run_load(url, contestant.model, [(Turn("Hello", 1),)], clients=1, limit_s=START_TIMEOUT_S)
            return
        except (aiohttp.ClientError, RequestFailed, OSError) as error:
            waited_s = time.perf_counter() - started
            if process.poll() is not None:
                raise ServerFailed(f"ended with status {process.returncode}: {last_line(log)}") from error
            if waited_s > START_TIMEOUT_S:
                raise ServerFailed(f"not ready after {waited_s:.0f} s ({error}): {last_line(log)}") from error
        # Probes take CPU time, too: a server that needs long is probed less often.
        time.sleep(0.05 if waited_s < 20 else 0.5)


def last_line(log: IO[str]) -> str:
    """The last line that is not empty. The error line of a Python traceback takes precedence."""
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    errors = [line for line in lines if "Error:" in line or "Exception:" in line]
    return ([*lines, *errors] or ["it logged nothing"])[-1][-300:]


def family(pid: int) -> list[psutil.Process]:
    """The process, its descendants, and all others of the session that it leads."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid:
                members.append(process)
        except OSError:  # ended meanwhile
            continue
    try:
        members += [child for child in psutil.Process(pid).children(recursive=True) if child not in members]
    except psutil.NoSuchProcess:
        pass
    return [member for member in members if member.pid != os.getpid()]


def _end(process: "subprocess.Popen[bytes]") -> None:
    members = family(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        pass
    # Includes processes that it started while it was ending.
    members += [member for member in family(process.pid) if member not in members]
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(members, timeout=10)
    process.wait(timeout=10)
