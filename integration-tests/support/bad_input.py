"""The file of bad requests: reading it, and checking a server's refusals."""

import json
from dataclasses import dataclass
from typing import Any

import httpx

from .paths import ROOT

_FILE = ROOT / "integration-tests" / "bad_input.json"

#: Valid requests. A case replaces some of their fields.
_BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/generate": {"inputs": "hi"},
    "/generate_stream": {"inputs": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/embed": {"inputs": "hi"},
    "/rerank": {"query": "a", "texts": ["b"]},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v1/score": {"text_1": "a", "text_2": "b"},
}


@dataclass(frozen=True)
class BadRequest:
    """A request, and the refusal that it gets.

    Attributes:
        server: model that is asked: `generator`, `encoder` or `reranker`.
        route: path.
        content: bytes of the body.
        status: HTTP status.
        error: fields of the error, all but its message; of `param` the beginning.
        words: part of the message.
        may_be_streamed: whether the body may get a field that asks for a stream, and is refused then, too.
    """

    number: int
    server: str
    route: str
    content: bytes
    status: int
    error: dict[str, Any]
    words: str
    may_be_streamed: bool

    @property
    def name(self) -> str:
        """Name of the test."""
        body = self.content[:60].decode("latin-1").encode("ascii", "backslashreplace").decode()
        return f"{self.number} {self.route} {body}"

    def check(self, response: httpx.Response) -> None:
        """Fails when the response is not this refusal."""
        what = f"{self.name}: {response.status_code} {response.text[:500]}"
        assert response.status_code == self.status, what
        assert response.headers["content-type"].startswith("application/json"), what
        body = response.json()
        inner = body["error"] if isinstance(body.get("error"), dict) else body
        message = inner.pop("message", None) or inner.pop("error")
        assert self.words in message, what
        assert len(message) < 1000, what
        for name, expected in self.error.items():
            found = inner.get(name)
            is_inside = name == "param" and expected and found and found.startswith(expected)
            assert found == expected or is_inside, what


def bad_requests() -> list[BadRequest]:
    """All of the file."""
    lines = json.loads(_FILE.read_text())
    return [_read(number, line) for number, line in enumerate(lines)]


def _read(number: int, line: dict[str, Any]) -> BadRequest:
    route = line["route"]
    if "raw" in line:
        content = _expanded(line["raw"]).encode("latin-1")
    elif "whole" in line:
        content = json.dumps(_expanded(line["whole"])).encode()
    else:
        content = json.dumps(_BASES.get(route, {}) | _expanded(line["body"])).encode()
    # A body that is not written by its fields may be wrong in a way that no other body has.
    by_fields = line.get("body")
    may_be_streamed = isinstance(by_fields, dict) and "stream" not in by_fields and line.get("streamed", True)
    return BadRequest(
        number, line["server"], route, content, line["status"], line["error"], line["words"], may_be_streamed
    )


def _expanded(value: Any) -> Any:
    """The value with its large parts written out. `{"$repeat": part, "times": n}` repeats a text or a list,
    `{"$each": part, "times": n}` is a list of parts in which `{i}` is the index, `{"$join": […]}` joins texts."""
    match value:
        case {"$repeat": part, "times": times}:
            return _expanded(part) * times
        case {"$each": part, "times": times}:
            text = json.dumps(part)
            return [json.loads(text.replace("{i}", str(index))) for index in range(times)]
        case {"$join": parts}:
            return "".join(_expanded(part) for part in parts)
        case dict():
            return {name: _expanded(part) for name, part in value.items()}
        case list():
            return [_expanded(part) for part in value]
    return value
