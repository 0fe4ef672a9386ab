"""A real `gridwork` launcher with its router and shards, for the length of a `with` block."""

import itertools
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from .client import Client
from .paths import GRIDWORK, ROOT

#: Generous, since two cores may be shared with other work.
READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0


def free_port() -> int:
    """A free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str, every_s: float = 0.05) -> None:
    """Polls `condition` until it holds; fails with `what` when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a launcher under test: this Python comes first on PATH, and no flag is inherited."""
    env = {name: value for name, value in os.environ.items() if name not in ("PORT", "HOSTNAME", "MODEL_ID", "API_KEY")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), str(GRIDWORK.parent), env.get("PATH", "")])
    env["HF_HUB_OFFLINE"] = "1"
    env.update(extra or {})
    return env


class Server:
    """One launcher. `with Server("--model-id", path) as server:` waits until it is ready, and stops it at the end. It
    must then exit with 0, and none of its processes may survive.

    Arguments are the launcher's flags; `--port` and `--hostname` are added. `trusted`: whom to trust with certificates,
    for a server with TLS.
    """

    def __init__(
        self,
        *flags: str | Path | int,
        env: dict[str, str] | None = None,
        port: int | None = None,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        self.flags = [str(flag) for flag in flags]
        self.env = env
        self.port = port or free_port()
        self.trusted = trusted
        self.url = f"{'https' if trusted else 'http'}://127.0.0.1:{self.port}"
        self.client = Client(self.url, trusted)
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self.ready_after_s = 0.0
        self._family: dict[int, psutil.Process] = {}
        self._reader: threading.Thread | None = None
        self._check_exit = True

    def __enter__(self) -> "Server":
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            print(self.log_tail())  # pytest shows it with the failure
        if kind is not None or not self._check_exit:
            self.kill()
        else:
            self.stop()

    def start(self) -> None:
        """Starts the launcher, without waiting."""
        if not GRIDWORK.exists():
            raise FileNotFoundError(f"{GRIDWORK} is not built; run `make build`")
        self.started_at = time.monotonic()
        # A command such as `serve MODEL` stands before all flags.
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), self.flags))
        self.process = subprocess.Popen(
            [str(GRIDWORK), *words, "--hostname", "127.0.0.1", "--port", str(self.port), *self.flags[len(words) :]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=child_environment(self.env),
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read_logs, daemon=True)
        self._reader.start()

    def _read_logs(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Waits until `/health` is 200. Fails with the log when the launcher ends or the time is over."""
        assert self.process is not None
        deadline = time.monotonic() + timeout_s
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"the launcher ended with {self.process.returncode}:\n{self.log_tail()}")
            if self.is_healthy():
                break
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready after {timeout_s:g} s:\n{self.log_tail()}")
            time.sleep(0.05)
        self.ready_after_s = time.monotonic() - self.started_at
        self.note_family()

    def is_healthy(self) -> bool:
        try:
            return httpx.get(self.url + "/health", timeout=5, verify=self.trusted or False).status_code == 200
        except httpx.HTTPError:
            return False

    # --- processes ----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def note_family(self) -> list[psutil.Process]:
        """Records every process below the launcher, so that survivors can be found after its end."""
        try:
            family = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            self._family[process.pid] = process
        return family

    def shards(self) -> list[psutil.Process]:
        """The shard processes, rank 0 first."""
        found = []
        for process in self.note_family():
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if "serve" in command and "--rank" in command and "--socket" in command:
                found.append((int(command[command.index("--rank") + 1]), process.pid, process))
        return [process for _, _, process in sorted(found, key=lambda entry: entry[:2])]

    def router(self) -> psutil.Process:
        for process in self.note_family():
            if process.name().startswith("gridwork-router"):
                return process
        raise AssertionError(f"no router among the launcher's children:\n{self.log_tail()}")

    def survivors(self) -> list[str]:
        """Running processes of this server."""
        alive = []
        for process in self._family.values():
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
            except psutil.Error:
                continue
        return alive

    # --- the end ------------------------------------------------------------------------------------------------

    def wait_exit(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Waits for the launcher to end by itself; returns its exit code."""
        assert self.process is not None and self._reader is not None
        while self.process.poll() is None:
            self.note_family()
            try:
                self.process.wait(timeout=min(0.2, timeout_s))
            except subprocess.TimeoutExpired:
                timeout_s -= 0.2
                if timeout_s <= 0:
                    raise AssertionError(f"the launcher did not end:\n{self.log_tail()}") from None
        self._reader.join(timeout=5)
        return self.process.returncode

    def stop(self) -> None:
        """Sends SIGTERM. The launcher must exit with 0 and leave no process."""
        assert self.process is not None
        self.note_family()
        self.process.send_signal(signal.SIGTERM)
        code = self.wait_exit()
        assert code == 0, f"exit code {code} after SIGTERM:\n{self.log_tail()}"
        self.assert_nothing_survives()
        self.client.close()

    def assert_nothing_survives(self, within_s: float = 5.0) -> None:
        try:
            wait_for(lambda: not self.survivors(), within_s, "every child process is gone")
        except AssertionError:
            raise AssertionError(f"still running: {self.survivors()}\n{self.log_tail()}") from None

    def kill(self) -> None:
        """Kills all processes, without any check."""
        assert self.process is not None
        self.note_family()
        self.process.kill()
        self.process.wait()
        for process in self._family.values():
            try:
                process.kill()
            except psutil.Error:
                continue
        self.client.close()

    def ends_by_itself(self) -> None:
        """Tells `with` that the test ends the launcher itself, so that no exit code is checked."""
        self._check_exit = False

    # --- logs ---------------------------------------------------------------------------------------------------

    def log(self) -> str:
        return "\n".join(self.lines)

    def log_tail(self, count: int = 60) -> str:
        return "\n".join(self.lines[-count:])
