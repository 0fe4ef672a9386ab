"""The messages of a conversation, the parameters of its requests, and files of both."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gridwork.errors import InvalidRequest

_OURS = ("model", "messages", "stream", "stream_options", "n")
"""Fields of a request that the chat sets itself."""


@dataclass
class Usage:
    """Tokens and times of answers."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft_s: float = 0.0
    """Time to the first token."""
    seconds: float = 0.0
    """Time to the end."""
    is_counted: bool = True
    """False: the server sends no usage, and `output_tokens` counts chunks of the stream."""

    def text(self) -> str:
        """In a line."""
        cached = f" ({self.cached_tokens} cached)" if self.cached_tokens else ""
        decode_s = self.seconds - self.ttft_s
        speed = f", {(self.output_tokens - 1) / decode_s:.1f} tokens/s" if self.output_tokens > 1 and decode_s else ""
        unit = "tokens" if self.is_counted else "chunks (the server counts no tokens)"
        return (
            f"{self.prompt_tokens} prompt tokens{cached}, {self.output_tokens} {unit} of answer, "
            f"TTFT {1e3 * self.ttft_s:.0f} ms{speed}, {self.seconds:.1f} s"
        )


@dataclass
class Conversation:
    """Questions and answers so far."""

    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Fields of each request, such as `temperature`."""
    turns: list[dict[str, Any]] = field(default_factory=list)
    """Messages without the system's."""

    def messages(self) -> list[dict[str, Any]]:
        """Body of a request."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns]

    def ask(self, text: str) -> None:
        """Adds a question."""
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Adds the answer."""
        self.turns.append({"role": "assistant", "content": text})

    def undo(self) -> str | None:
        """Removes the last question with its answer; returns it, or None where there is none."""
        while self.turns:
            last = self.turns.pop()
            if last["role"] == "user":
                return str(last["content"])
        return None

    def clear(self) -> None:
        """Forgets all but the system's message and the parameters."""
        self.turns.clear()

    def set(self, text: str) -> str:
        """Sets a parameter from "name=value", in JSON or as a text; an empty value removes it. Returns its name.

        Raises InvalidRequest."""
        name, equals, given = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not equals or not name.isidentifier():
            raise InvalidRequest(f'"{text}" is no parameter; give one such as temperature=0.7')
        if name in _OURS:
            raise InvalidRequest(f"`{name}` is set by the chat itself", field=name)
        if not given:
            self.parameters.pop(name, None)
            return name
        try:
            self.parameters[name] = json.loads(given)
        except ValueError:
            self.parameters[name] = given
        return name

    def save(self, path: Path) -> None:
        """Writes messages and parameters as a request of OpenAI's chat API. Raises InvalidRequest."""
        body = {**self.parameters, "messages": self.messages()}
        try:
            path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from None

    def load(self, path: Path) -> None:
        """Replaces all by a file that `save` wrote, or by a list of messages. Raises InvalidRequest."""
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise InvalidRequest(f"{path} is no conversation: {error}") from None
        messages = body.get("messages") if isinstance(body, dict) else body
        if not isinstance(messages, list) or not all(
            isinstance(each, dict) and isinstance(each.get("role"), str) and "content" in each for each in messages
        ):
            raise InvalidRequest(f"{path} is no conversation; it needs `messages`, each with `role` and `content`")
        has_system = bool(messages) and messages[0]["role"] == "system"
        self.system = str(messages[0]["content"]) if has_system else ""
        self.turns = messages[has_system:]
        if isinstance(body, dict):
            self.parameters = {name: value for name, value in body.items() if name not in _OURS}
