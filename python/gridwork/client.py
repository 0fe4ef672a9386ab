"""HTTP to a server, over a unix socket or a network: requests, streams, and errors as exceptions."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from gridwork.errors import EngineDied, GridworkError, InvalidRequest, RequestFailed

_KEEP_ALIVE_S = 30.0
"""Less than the server's own `--client-idle-timeout`."""
_CONNECT_S = 30.0
_BUSY_STATUSES = (429, 503)
_PATIENCE_S = 120.0
"""Maximum time for which a server that is busy, or restarts its shards, is asked again."""


@dataclass(frozen=True)
class Address:
    """Where a server answers."""

    url: str
    socket: str | None = None
    api_key: str | None = None

    @classmethod
    def read(cls, text: str, api_key: str | None) -> "Address":
        """Reads a URL, or `unix:PATH`."""
        if text.startswith("unix:"):
            return cls("http://gridwork", text.removeprefix("unix:").removeprefix("//"), api_key)
        return cls(text.rstrip("/").removesuffix("/v1"), None, api_key)

    def open_session(self, timeout_s: float | None = None) -> aiohttp.ClientSession:
        """Connections to the server, any number of them. timeout_s: maximum time of a request; None: no limit."""
        connector = (
            aiohttp.UnixConnector(self.socket, limit=0, keepalive_timeout=_KEEP_ALIVE_S)
            if self.socket
            else aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S),
        )


def is_address(model: str) -> bool:
    """True for the address of a server, in contrast to a model's name or folder."""
    return model.startswith(("http://", "https://", "unix:"))


class Client:
    """Sends requests. Belongs to the event loop that uses it first."""

    def __init__(self, address: Address, death: Callable[[], GridworkError | None]) -> None:
        """death: says why there is no server, when a connection breaks; None if it is still there."""
        self._address = address
        self._death = death
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = self._address.open_session()
        return self._session

    async def close(self) -> None:
        """Closes all connections, which ends the requests on them."""
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str) -> Any:
        """The JSON at a path."""
        async with self._answer("GET", path, None) as response:
            return json.loads(await response.read())

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[Any, Mapping[str, str]]:
        """The JSON answer to a request, and its headers. Cancelling this ends the request."""
        async with self._answer("POST", path, body) as response:
            return json.loads(await response.read()), response.headers

    async def send(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """The status and the JSON of an answer, whatever the status is."""
        async with self._answer("POST", path, body, raises=False) as response:
            return response.status, _json(await response.read())

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The events of a streamed answer. Leaving the loop early ends the request."""
        async with self._answer("POST", path, body) as response:
            rest = b""
            async for piece in response.content.iter_any():
                *events, rest = (rest + piece).split(b"\n\n")
                for event in events:
                    # A comment keeps the connection alive.
                    if not event.startswith(b"data: "):
                        continue
                    data = event.removeprefix(b"data: ")
                    if data == b"[DONE]":
                        return
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise _error_of(chunk, 500)
                    yield chunk
            raise await self._lost("the stream ended early")

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None, raises: bool = True
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        data = json.dumps(body, default=_plain).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if body is not None else {}
        waited_s = 0.0
        try:
            while True:
                url = self._address.url + path
                async with self._opened().request(method, url, data=data, headers=headers) as response:
                    wait_s = _wait_s(response) if waited_s < _PATIENCE_S else None
                    if response.status == 200 or not (raises or wait_s):
                        yield response
                        return
                    if wait_s is None:
                        raise _error_of(_json(await response.read()), response.status)
                waited_s += wait_s
                await asyncio.sleep(wait_s)
        except (aiohttp.ClientError, ConnectionError) as error:
            raise await self._lost(str(error) or type(error).__name__) from error

    async def _lost(self, how: str) -> GridworkError:
        """Meaning of a broken connection."""
        death = await asyncio.to_thread(self._death)
        if death is not None:
            return death
        return EngineDied(f"the connection to the server at {self._address.socket or self._address.url} broke: {how}")


def _wait_s(response: aiohttp.ClientResponse) -> float | None:
    """Time after which a request that was refused may be sent again."""
    if response.status not in _BUSY_STATUSES:
        return None
    try:
        return min(max(float(response.headers.get("Retry-After", "1")), 0.1), 5.0)
    except ValueError:
        return 1.0


def _plain(value: object) -> Any:
    """Numbers of NumPy and PyTorch, and sequences, in JSON's types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | range):
        return list(value)
    raise InvalidRequest(f"a value of type {type(value).__name__} cannot be part of a request: {value!r:.80}")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return {"error": body.decode(errors="replace")[:500]}


def _error_of(body: Any, status: int) -> GridworkError:
    """The exception for an answer, in OpenAI's dialect of errors or in that of text-generation-inference."""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        message, field, code = str(error.get("message")), error.get("param"), error.get("code")
    else:
        message, field = str(error if error is not None else body), None
        code = body.get("error_type") if isinstance(body, dict) else None
    code = str(code) if code is not None else None
    if status in (400, 404, 413, 415, 422):
        return InvalidRequest(message, field=field, code=code)
    return RequestFailed(message, status=status, code=code)
