"""Misbehaving clients over bare sockets."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]


def connect(port: int, timeout_s: float = 30.0) -> socket.socket:
    """An open connection."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def request(path: str, body: Json | bytes, headers: str = "") -> bytes:
    """The bytes of a POST."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return (head + headers + "\r\n").encode() + content


def send(port: int, path: str, body: Json | bytes, headers: str = "") -> socket.socket:
    """A connection with a request sent and nothing read."""
    connection = connect(port)
    connection.sendall(request(path, body, headers))
    return connection


def status_of(connection: socket.socket, timeout_s: float = 30.0) -> int:
    """The status of the answer; 0 when the connection ends without an answer."""
    connection.settimeout(timeout_s)
    head = b""
    with contextlib.suppress(OSError):
        while b"\r\n" not in head:
            piece = connection.recv(4096)
            if not piece:
                break
            head += piece
    words = head.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1][:3].isdigit() else 0


def is_closed_within(connection: socket.socket, timeout_s: float) -> bool:
    """True if the server ends the connection in time. Its data until then is read and dropped."""
    connection.settimeout(timeout_s)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def many(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Idle connections."""
    connections = []
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                connections.append(connect(port, 2.0))
        yield connections
    finally:
        for connection in connections:
            connection.close()
