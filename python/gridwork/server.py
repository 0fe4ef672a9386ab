"""The server that a program starts for itself: the launcher as a child process.

The launcher holds one end of a socket pair as its stdin (`--parent-link`). It says there where it listens, and ends as
soon as the other end is closed, which the system does however this process ends.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gridwork import program
from gridwork.errors import EngineDied, GridworkError, ModelError

_log = logging.getLogger("gridwork")

_END_S = 15.0
"""Maximum time for the launcher to end by itself; it gives running requests less."""
_BREAK_S = 0.5
"""Time in which a launcher that was killed is seen to have ended, after its router broke a connection."""
_KEPT_LINES = 40

_links: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


def _close_in_child() -> None:
    """A forked child would keep the links open after the death of this process."""
    for link in list(_links):
        link.close()


os.register_at_fork(after_in_child=_close_in_child)


@dataclass(frozen=True)
class Ready:
    """Where the server answers."""

    socket: str
    model_id: str
    model_path: str


class Server:
    """A running launcher with its children. It ends when this object is closed or collected, and with this process."""

    def __init__(self, model: str, options: Mapping[str, Any], flags: Sequence[str] = ()) -> None:
        """Starts the launcher, without waiting. Raises InvalidRequest for options that cannot be flags."""
        self._options = options
        command = [program.find(), *program.arguments(model, options, flags)]
        ours, theirs = socket.socketpair()
        with theirs:
            # A group of its own: Ctrl-C in a terminal is for this process.
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        _links.add(ours)
        self._link = ours
        self._owner = os.getpid()
        self._tail: deque[str] = deque(maxlen=_KEPT_LINES)
        self._errors: list[str] = []
        self._ready: Ready | None = None
        self._failed: dict[str, str] | None = None
        self._lock = threading.Lock()
        assert self._process.stdout is not None and self._process.stderr is not None
        self._readers = [
            threading.Thread(target=_read_log, args=(self._process.stdout, self._tail), daemon=True),
            threading.Thread(target=_read_errors, args=(self._process.stderr, self._errors), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._end = weakref.finalize(self, _end, self._process, ours, self._owner, self._readers)

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    def check_owner(self) -> None:
        """Raises EngineDied in a process that was forked from the one that made this object."""
        if os.getpid() != self._owner:
            raise EngineDied(
                "this LLM belongs to the process that made it; make one in this process, with the start method `spawn` "
                "for multiprocessing"
            )

    def wait_ready(self) -> Ready:
        """Waits until the server answers, and says where. Raises InvalidRequest, ModelError or EngineDied."""
        self.check_owner()
        with self._lock:
            if self._ready is None:
                self._read_event()
            if self._ready is None:
                raise self.death()
            return self._ready

    def _read_event(self) -> None:
        if self._failed is not None or not self._end.alive:
            return
        line = b""
        with contextlib.suppress(OSError):
            while not line.endswith(b"\n") and (piece := self._link.recv(4096)):
                line += piece
        if line.endswith(b"\n"):
            event = json.loads(line)
            if event.get("event") == "ready":
                self._ready = Ready(event["socket"], event["model_id"], event["model_path"])
            elif event.get("event") == "failed":
                self._failed = event

    def is_alive(self) -> bool:
        """True while the launcher runs."""
        return self._end.alive and self._process.poll() is None

    def is_alive_soon(self) -> bool:
        """The same, after a connection broke: a launcher that is ending is given the time to end."""
        if self._end.alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_BREAK_S)
        return self.is_alive()

    def death(self) -> GridworkError:
        """Why there is no server."""
        if not self._end.alive:
            return EngineDied("this LLM is closed")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        for reader in self._readers:
            reader.join(2)
        text = "".join(self._errors)
        reason = self._failed["reason"] if self._failed else text.strip().removeprefix("error: ")
        if self._failed and self._failed["kind"] == "model":
            return ModelError(reason)
        # 2 is the exit code for flags that are refused.
        if self._process.returncode == 2 or (self._failed and self._failed["kind"] == "setting"):
            return program.refusal(text or reason, self._options)
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        tail = "\n".join(self._tail)
        return EngineDied(f"the server {how}" + (f": {reason}" if reason else "") + (f"\n{tail}" if tail else ""))

    def close(self) -> None:
        """Ends the server and waits until it is gone."""
        self._end()
        if self._ready is not None:
            _remove_left_over(Path(self._ready.socket))


def _end(
    process: "subprocess.Popen[bytes]", link: socket.socket, owner: int, readers: "list[threading.Thread]"
) -> None:
    if os.getpid() != owner:
        link.close()
        return
    with contextlib.suppress(OSError):
        # Wakes a thread that waits for the server, too.
        link.shutdown(socket.SHUT_RDWR)
    link.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        # Its children ask the kernel to end with it.
        process.kill()
        process.wait()
    for reader in readers:
        reader.join(2)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _remove_left_over(path: Path) -> None:
    """Removes the private folder of a launcher that was killed, which it else removes itself."""
    if path.parent.name.startswith("gridwork-") and path.parent.is_dir():
        shutil.rmtree(path.parent, ignore_errors=True)


def _read_log(stream: IO[bytes], tail: "deque[str]") -> None:
    """Passes the server's log on to Python's `logging`, under the name `gridwork`."""
    for line in stream:
        text = line.decode(errors="replace").rstrip("\n")
        try:
            record = json.loads(text)
            level, message = _LEVELS.get(record["level"], logging.INFO), str(record["message"])
        except (ValueError, KeyError, TypeError):
            level, message = logging.INFO, text
        if level >= logging.INFO:
            tail.append(message)
        _log.log(level, "%s", message)


_LEVELS = {"TRACE": 5, "DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


def _read_errors(stream: IO[bytes], lines: list[str]) -> None:
    for line in stream:
        if len(lines) < _KEPT_LINES:
            lines.append(line.decode(errors="replace"))
