"""The forms in which prompts are given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeGuard

from gridwork.errors import InvalidRequest


class TextPrompt(TypedDict):
    """A prompt as vLLM's dictionaries have it."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt of token ids as vLLM's dictionaries have it."""

    prompt_token_ids: Sequence[int]


PromptType = str | Sequence[int] | TextPrompt | TokensPrompt
"""A prompt: a text, token ids, or a dictionary with either."""

Messages = Sequence[Mapping[str, Any]]
"""A conversation, as OpenAI's API has it."""


@dataclass(frozen=True)
class Prompt:
    """A prompt whose form has been checked."""

    text: str | None
    token_ids: list[int] | None

    @property
    def body(self) -> str | list[int]:
        """The form that the HTTP API takes."""
        return self.text if self.text is not None else self.token_ids or []


def read_prompt(given: object, index: int = 0) -> Prompt:
    """Raises InvalidRequest for what is not a prompt; `index` is its place in the list, for the message."""
    if isinstance(given, str):
        return Prompt(given, None)
    if isinstance(given, Mapping):
        unknown = set(given) - {"prompt", "prompt_token_ids"}
        if unknown:
            raise _refusal(
                index, f"has the key {sorted(map(str, unknown))[0]!r}; known are prompt and prompt_token_ids"
            )
        if given.get("prompt_token_ids") is not None:
            return _of_tokens(given["prompt_token_ids"], index)
        if isinstance(given.get("prompt"), str):
            return Prompt(given["prompt"], None)
        raise _refusal(index, "has neither a text as `prompt` nor token ids as `prompt_token_ids`")
    return _of_tokens(given, index)


def _of_tokens(given: object, index: int) -> Prompt:
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise _refusal(index, f"is of type {type(given).__name__}; give a text, token ids, or a dictionary with either")
    for token in given:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise _refusal(index, f"has {token!r} among its token ids, which are integers from 0")
    if not given:
        raise _refusal(index, "has no token")
    return Prompt(None, list(given))


def _refusal(index: int, what: str) -> InvalidRequest:
    return InvalidRequest(f"prompts[{index}] {what}", field="prompts")


def is_single(prompts: object) -> bool:
    """True for one prompt: a text, a dictionary, or a list of token ids."""
    if isinstance(prompts, str | Mapping):
        return True
    return isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], int)


def is_conversation(messages: object) -> bool:
    """True for one conversation, in contrast to a list of them."""
    return isinstance(messages, Sequence) and bool(messages) and isinstance(messages[0], Mapping)


def is_lazy(prompts: object) -> TypeGuard[Iterator[Any]]:
    """True for an iterator, whose prompts are read as the answers are."""
    return isinstance(prompts, Iterator)
