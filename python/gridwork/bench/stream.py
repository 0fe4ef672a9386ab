"""Reads the events of one streamed answer as they arrive, and parses no more JSON than the figures need."""

import json
import re
from array import array
from typing import Any

# A quote inside a text is escaped, so that these match keys of the event alone. The last two characters of a match are
# the start of a text that is not empty.
_HAS_TOKENS = re.compile(
    rb'"(?:text|content|reasoning_content|reasoning)"\s*:\s*"(?!")|"(?:tool_calls|token_ids)"\s*:\s*\[\s*[^\]\s]'
)
_IS_SPECIAL = re.compile(rb'"usage"\s*:\s*\{|"error"\s*:\s*[^n\s]')


class AnswerReader:
    """State of an answer whose bytes arrive piece by piece. Times are seconds of the caller's clock."""

    __slots__ = ("error", "first_s", "gaps_s", "is_done", "last_s", "num_chunks", "rest", "usage")

    def __init__(self) -> None:
        self.rest = b""
        self.first_s: float | None = None
        """Arrival of the first chunk with tokens."""
        self.last_s = 0.0
        """Arrival of the latest chunk with tokens."""
        self.num_chunks = 0
        """Number of chunks with tokens."""
        self.gaps_s = array("d")
        """Times between such chunks."""
        self.usage: dict[str, Any] = {}
        self.error: str | None = None
        """Message of an error event."""
        self.is_done = False

    def feed(self, piece: bytes, now_s: float) -> None:
        """Reads bytes that arrived at `now_s`. Pieces may end anywhere."""
        *lines, self.rest = (self.rest + piece).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if line.startswith((b"data: [DONE]", b"data:[DONE]")):
                self.is_done = True
                continue
            if _HAS_TOKENS.search(line):
                self._arrived(now_s)
            if _IS_SPECIAL.search(line):
                self._read(line)

    def _arrived(self, now_s: float) -> None:
        if self.first_s is None:
            self.first_s = now_s
        else:
            self.gaps_s.append(now_s - self.last_s)
        self.last_s = now_s
        self.num_chunks += 1

    def _read(self, line: bytes) -> None:
        try:
            event = json.loads(line[5:])
        except ValueError:
            self.error = "an event is not JSON"
            return
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        if event.get("error"):
            error = event["error"]
            self.error = str(error.get("message") if isinstance(error, dict) else error)
