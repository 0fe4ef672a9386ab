"""Faults of clients that request too much, send malformed data, or do not read."""

import contextlib
import gzip
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
from support.server import wait_for

from . import clients
from .faults import Faults, Scene

FAULTS = Faults()

_LONG = 900
"""Maximum tokens of a long stream."""


def _body(num_tokens: int = _LONG, text: str = "The boats") -> clients.Json:
    return {"inputs": text, "parameters": {"max_new_tokens": num_tokens}}


def _is_served(scene: Scene, within_s: float = 5.0) -> None:
    """Checks that `/health` and a short request are answered soon."""
    began = time.monotonic()
    response = httpx.get(scene.server.url + "/health", timeout=within_s, trust_env=False)
    assert response.status_code == 200, response.text
    response = httpx.post(scene.server.url + "/generate", json=_body(1), timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    assert time.monotonic() - began < 30, "a short request waited for half a minute"


def _send_and_close(scene: Scene, count: int, content: bytes) -> None:
    for _ in range(count):
        connection = clients.connect(scene.port)
        connection.sendall(content)
        connection.close()


def _running(scene: Scene) -> float:
    return scene.server.client.metric("gridwork_running_sequences")


@FAULTS.add("streams: 20 aborted after their first bytes")
def _(scene: Scene) -> None:
    for _ in range(20):
        connection = clients.send(scene.port, "/generate_stream", _body())
        connection.recv(64)
        connection.close()


@FAULTS.add("streams: 8 reset while they run")
def _(scene: Scene) -> None:
    import socket
    import struct

    connections = [clients.send(scene.port, "/generate_stream", _body()) for _ in range(8)]
    for connection in connections:
        connection.recv(64)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


@FAULTS.add("streams: 8 that nobody reads")
def _(scene: Scene) -> None:
    body = {"prompt": "The boats " * 100, "n": 2, "best_of": 2, "echo": True, "stream": True, "max_tokens": 300}
    connections = [clients.send(scene.port, "/v1/completions", body) for _ in range(8)]
    _is_served(scene)
    # The generations end although nobody reads them, and free their places.
    wait_for(lambda: _running(scene) <= 4, 60, "the generations end", every_s=0.2)
    _is_served(scene)
    for connection in connections:
        connection.close()


@FAULTS.add("streams: large echoes that nobody reads leave places to others")
def _(scene: Scene) -> None:
    body = {"prompt": "boat " * 800, "n": 2, "best_of": 2, "echo": True, "stream": True, "max_tokens": 60}
    body["logprobs"] = 5
    connections = []
    try:
        for _ in range(24):
            connections.append(clients.send(scene.port, "/v1/completions", body))

        def is_admitted() -> bool:
            response = httpx.post(scene.server.url + "/generate", json=_body(1), timeout=60, trust_env=False)
            return response.status_code == 200

        wait_for(is_admitted, 60, "somebody else gets a place", every_s=0.3)
    finally:
        for connection in connections:
            connection.close()


@FAULTS.add("streams: one that is read a byte at a time")
def _(scene: Scene) -> None:
    connection = clients.send(scene.port, "/generate_stream", _body(100))
    for _ in range(100):
        assert connection.recv(1), "the stream was cut"
        time.sleep(0.01)
    connection.close()


@FAULTS.add("connections: 300 that say nothing")
def _(scene: Scene) -> None:
    with clients.many(scene.port, 300):
        _is_served(scene)


@FAULTS.add("connections: a header that never ends is given up")
def _(scene: Scene) -> None:
    connection = clients.connect(scene.port)
    connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    _is_served(scene)
    assert clients.is_closed_within(connection, 60), "it is still open after a minute"


@FAULTS.add("connections: a header that comes a byte at a time")
def _(scene: Scene) -> None:
    connection = clients.connect(scene.port)
    for byte in b"GET /health HTTP/1.1\r\nHost: x\r\n":
        connection.sendall(bytes([byte]))
        time.sleep(0.01)
    _is_served(scene)
    connection.close()


@FAULTS.add("connections: bodies that do not come")
def _(scene: Scene) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"
    connections = [clients.connect(scene.port) for _ in range(50)]
    for connection in connections:
        connection.sendall(head)
    _is_served(scene)
    for connection in connections:
        connection.close()


@FAULTS.add("connections: bodies shorter than they were said to be")
def _(scene: Scene) -> None:
    _send_and_close(scene, 20, b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{}")


@FAULTS.add("connections: closed in the middle of a header")
def _(scene: Scene) -> None:
    _send_and_close(scene, 50, b"POST /generate HT")


@FAULTS.add("connections: 30 of random bytes")
def _(scene: Scene) -> None:
    random_bytes = random.Random(7)
    for _ in range(30):
        connection = clients.connect(scene.port)
        with contextlib.suppress(OSError):
            connection.sendall(random_bytes.randbytes(random_bytes.randrange(1, 5000)))
        connection.close()


@FAULTS.add("connections: 200 requests in one pipeline")
def _(scene: Scene) -> None:
    connection = clients.connect(scene.port)
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
    received = b""
    connection.settimeout(30)
    while received.count(b"HTTP/1.1 200") < 200:
        piece = connection.recv(65536)
        assert piece, "the connection was closed"
        received += piece
    connection.close()


@FAULTS.add("bodies: 16 prompts of 1.9 MB")
def _(scene: Scene) -> None:
    body = clients.request("/generate", _body(1, "boat and map " * 146_000))

    def ask(_: int) -> int:
        connection = clients.connect(scene.port, 120)
        with contextlib.suppress(OSError):
            connection.sendall(body)
        return clients.status_of(connection, 120)

    with ThreadPoolExecutor(16) as pool:
        asking = pool.map(ask, range(16))
        _is_served(scene)
        statuses = set(asking)
    assert statuses <= {400, 413, 422, 429, 503}, statuses


@FAULTS.add("bodies: above the limit is told as 413 while the client writes")
def _(scene: Scene) -> None:
    connection = clients.send(scene.port, "/generate", b"", "Expect-Nothing: 1\r\n")
    connection.close()
    connection = clients.connect(scene.port)
    connection.sendall(
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50000000\r\n\r\n"
    )
    with contextlib.suppress(OSError):
        for _ in range(200):
            connection.sendall(b" " * 100_000)
    assert clients.status_of(connection) == 413


@FAULTS.add("bodies: endless chunks")
def _(scene: Scene) -> None:
    connection = clients.connect(scene.port)
    connection.sendall(
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"186a0\r\n" + b" " * 100_000 + b"\r\n"
    with contextlib.suppress(OSError):
        for _ in range(100):
            connection.sendall(chunk)
    assert clients.status_of(connection) == 413


@FAULTS.add("bodies: JSON 100,000 deep")
def _(scene: Scene) -> None:
    for deep in (b"[" * 100_000, b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' * 100_000):
        assert clients.status_of(clients.send(scene.port, "/generate", deep)) in (400, 422)


@FAULTS.add("bodies: 100 of bad JSON")
def _(scene: Scene) -> None:
    bad = [b"", b"{", b"null", b"[]", b'{"inputs": 3}', b"\xff\xfe", b'{"inputs": "\\ud800"}', os.urandom(100)]
    for number in range(100):
        status = clients.status_of(clients.send(scene.port, "/generate", bad[number % len(bad)]))
        assert 400 <= status < 500, (bad[number % len(bad)], status)


@FAULTS.add("bodies: 1 GB in a megabyte of gzip")
def _(scene: Scene) -> None:
    bomb = gzip.compress(b'{"inputs": "' + b" " * 200_000_000 + b'"}')
    connection = clients.send(scene.port, "/generate", bomb, "Content-Encoding: gzip\r\n")
    assert clients.status_of(connection, 60) in (400, 413, 415, 422)


@FAULTS.add("parameters: beyond every bound")
def _(scene: Scene) -> None:
    for parameters in (
        {"max_new_tokens": 10**12},
        {"max_new_tokens": -1},
        {"best_of": 10**6, "do_sample": True},
        {"top_k": 2**40},
        {"temperature": 1e308 * 10},
        {"stop": ["x"] * 100_000},
        {"seed": 2**70},
        {"top_n_tokens": 10**9},
    ):
        content = json.dumps({"inputs": "x", "parameters": parameters}).encode()
        status = clients.status_of(clients.send(scene.port, "/generate", content))
        assert 400 <= status < 500, (str(parameters)[:80], status)


@FAULTS.add("requests: 100 at once, more than there are places for")
def _(scene: Scene) -> None:
    connections = [clients.send(scene.port, "/generate", _body(5)) for _ in range(100)]
    statuses = {clients.status_of(connection, 120) for connection in connections}
    assert statuses <= {200, 429}, statuses


@FAULTS.add("requests: texts to tokenize whose answers nobody reads")
def _(scene: Scene) -> None:
    body = {"inputs": "a b c d " * 100_000}
    connections = [clients.send(scene.port, "/tokenize", body) for _ in range(8)]
    _is_served(scene)
    for connection in connections:
        connection.close()


@FAULTS.add("requests: unknown paths, methods and types")
def _(scene: Scene) -> None:
    for method, path in [("GET", "/generate"), ("PUT", "/v1/completions"), ("POST", "/nothing"), ("TRACE", "/")]:
        response = httpx.request(method, scene.server.url + path, timeout=10, trust_env=False)
        assert response.status_code in (400, 404, 405), (method, path, response.status_code)
    assert clients.status_of(clients.send(scene.port, "/generate", b"\x00" * 100)) in (400, 415, 422)


@FAULTS.add("requests: control characters reach no log")
def _(scene: Scene) -> None:
    text = "\x1b]0;owned\x07\x1b[2J"
    scene.server.client.post("/v1/completions", {"model": text, "prompt": text, "max_tokens": 1, "stop": [text]})
    scene.server.client.post("/generate", {"inputs": text, "parameters": {"max_new_tokens": text}})
    assert "\x1b" not in scene.server.log()
