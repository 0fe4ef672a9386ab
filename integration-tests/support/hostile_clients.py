"""Clients that occupy a server's connections, places and memory. Loopback only; every wait has a limit.

Each is a context manager, or closes its connections when it is collected, so that a failing test leaves nothing behind.
"""

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

#: Maximum wait for a socket.
WAIT_S = 60.0


class RawClient:
    """One TCP connection to a server on this machine, with control over every byte.

    Args:
        port: the server's port on 127.0.0.1.
        receive_bytes: size of the system's receive buffer. A small one makes the server notice at once that nothing is
            read.
    """

    def __init__(self, port: int, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(WAIT_S)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect(("127.0.0.1", port))

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def post(self, path: str, body: object, *headers: str) -> None:
        """Sends a whole request."""
        data = json.dumps(body).encode()
        self.send(head("POST", path, f"content-length: {len(data)}", *headers) + data)

    def get(self, path: str, *headers: str) -> None:
        self.send(head("GET", path, *headers))

    def read_head(self) -> tuple[int, str]:
        """The status and the whole head of an answer. It is read byte by byte, so that the body stays unread."""
        received = b""
        while not received.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            if not byte:
                raise ConnectionError(f"closed after {received!r}")
            received += byte
        text = received.decode("latin-1")
        return int(text.split()[1]), text

    def read_to_end(self, pause_s: float = 0.0, chunk_bytes: int = 65536) -> bytes:
        """Reads until the server closes. A pause after each chunk makes a slow reader."""
        parts = []
        while part := self.socket.recv(chunk_bytes):
            parts.append(part)
            if pause_s:
                time.sleep(pause_s)
        return b"".join(parts)

    def has_input(self) -> bool:
        """True if data or the end can be read now."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def closed_within(self, timeout_s: float) -> bool:
        """True if the server closes or resets the connection in time. Its data until then is read and dropped."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if not self.socket.recv(1 << 20):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return False


def head(method: str, path: str, *headers: str) -> bytes:
    """The head of a request with a JSON body."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode()


@contextmanager
def unread_stream(port: int, path: str, body: dict[str, Any]) -> Iterator[RawClient]:
    """Requests a stream and reads only the head of its answer."""
    with RawClient(port, receive_bytes=4096) as client:
        client.post(path, body)
        status, text = client.read_head()
        assert status == 200, text
        yield client


@contextmanager
def unread_answers(port: int, path: str, body: object, count: int) -> Iterator[list[RawClient]]:
    """Sends `count` requests and reads none of the answers."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(port, receive_bytes=4096)) for _ in range(count)]
        for client in clients:
            client.post(path, body)
        yield clients


@contextmanager
def slow_bodies(port: int, path: str, count: int, length: int = 100_000) -> Iterator[list[RawClient]]:
    """Announces bodies of `length` bytes and sends ten bytes of each."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(port)) for _ in range(count)]
        for client in clients:
            client.send(head("POST", path, f"content-length: {length}") + b'{"inputs":')
        yield clients


@contextmanager
def idle_connections(port: int, count: int, used: bool = True) -> Iterator[list[RawClient]]:
    """Connections without a request. used: each has had one answered request."""
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(RawClient(port))
            if used:
                client.get("/health")
                client.read_head()
            clients.append(client)
        yield clients


@contextmanager
def half_open_connections(port: int, count: int) -> Iterator[list[RawClient]]:
    """Connections with an incomplete head of a request."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(port)) for _ in range(count)]
        for client in clients:
            client.send(b"POST /generate HTTP/1.1\r\nhost: 127.")
        yield clients


@contextmanager
def giant_prompts(port: int, count: int, length: int = 1_900_000) -> Iterator[list[RawClient]]:
    """Sends `count` prompts of `length` bytes at once, without waiting for the answers.

    They have `truncate`, so that all of each has to be tokenized.
    """
    parameters = {"max_new_tokens": 1, "truncate": 16}
    text = ("all work and no play " * (length // 21 + 1))[:length]
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(port)) for _ in range(count)]
        for client in clients:
            client.post("/generate", {"inputs": text, "parameters": parameters}, "connection: close")
        yield clients


def still_writing(port: int, path: str, length: int, *headers: str) -> bytes:
    """Sends a whole body of `length` bytes before reading, as most clients do; returns the whole answer."""
    with RawClient(port) as client:
        client.send(head("POST", path, f"content-length: {length}", *headers))
        left = length
        while left > 0:
            part = min(left, 1 << 16)
            client.send(b"x" * part)
            left -= part
        return client.read_to_end()
