"""A small, thread-safe HTTP client for the routes of Gridwork."""

import json
import ssl
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

Json = dict[str, Any]

#: Maximum time of an answer of these tests, with a restart of a shard.
TIMEOUT_S = 240.0


@dataclass
class Answer:
    """An answer of `/generate` or `/generate_stream`."""

    token_ids: list[int]
    text: str
    finish_reason: str | None = None
    details: Json = field(default_factory=dict)


class Client:
    def __init__(self, url: str, trusted: ssl.SSLContext | None = None) -> None:
        # Each request has its own connection, which the header closes. A pool without idle connections could close one
        # that another thread has just been given.
        self.http = httpx.Client(
            base_url=url,
            timeout=TIMEOUT_S,
            verify=trusted or True,
            headers={"connection": "close"},
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    def close(self) -> None:
        self.http.close()

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path)

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def ok(self, path: str, body: object) -> Any:
        """POSTs and returns the JSON of a 200."""
        response = self.post(path, body)
        assert response.status_code == 200, f"{response.status_code} {response.text}"
        return response.json()

    # --- TGI routes ---------------------------------------------------------------------------------------------

    def generate(self, inputs: str, **parameters: Any) -> Answer:
        reply = self.ok("/generate", {"inputs": inputs, "parameters": {"details": True, **parameters}})
        details = reply["details"]
        return Answer(
            token_ids=[token["id"] for token in details["tokens"]],
            text=reply["generated_text"],
            finish_reason=details["finish_reason"],
            details=details,
        )

    def generate_stream(self, inputs: str, **parameters: Any) -> Answer:
        """Like `generate`, over `/generate_stream`; checks that indices count up from 1."""
        events = list(
            self.stream("/generate_stream", {"inputs": inputs, "parameters": {"details": True, **parameters}})
        )
        for index, event in enumerate(events, start=1):
            assert "error" not in event, event
            assert event["index"] == index, (index, event)
        last = events[-1]
        return Answer(
            token_ids=[event["token"]["id"] for event in events],
            text=last["generated_text"],
            finish_reason=last["details"]["finish_reason"],
            details=last["details"],
        )

    def stream(self, path: str, body: object) -> Iterator[Any]:
        """The JSON of every `data:` line of an SSE answer, without the closing `[DONE]`."""
        with self.http.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                response.read()
                raise AssertionError(f"{response.status_code} {response.text}")
            assert response.headers["content-type"].startswith("text/event-stream")
            yield from events_of(response)

    # --- many at once -------------------------------------------------------------------------------------------

    @staticmethod
    def together(calls: Sequence[Any]) -> list[Any]:
        """Runs the callables at the same time, each in a thread; returns their results in order."""
        with ThreadPoolExecutor(max_workers=max(1, len(calls))) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls]]

    # --- metrics ------------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """The values of `/metrics`, by name with its labels as printed."""
        response = self.get("/metrics")
        assert response.status_code == 200
        values = {}
        for line in response.text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                values[name] = float(value)
        return values

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels; 0 before it is first counted."""
        return sum(value for key, value in self.metrics().items() if key.split("{")[0] == name)


def events_of(response: httpx.Response) -> Iterator[Any]:
    """Parses the `data:` lines of an open SSE response."""
    for line in response.iter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
            if data == "[DONE]":
                return
            yield json.loads(data)
