"""Prompts of a load: synthetic ones of given lengths, or those of a file."""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridwork.errors import InvalidRequest

# Words that are one token each, with the space before them, in the vocabularies of common models.
_TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one
you were all her she there would their we him been has when who will no more if out so up said what its about than
into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also well did many before must through back years where much your way down should because long each
just those people how too little state good very make world still see own men work here life both between under last
never day same another know while might us great old year off come since go against right used take three
"""
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class Prompt:
    """The text of a request: a prompt, or the messages of a conversation."""

    text: str | None = None
    messages: tuple[dict[str, Any], ...] = ()

    def as_messages(self) -> list[dict[str, Any]]:
        """For the chat API: a text is a user's message."""
        return list(self.messages) if self.text is None else [{"role": "user", "content": self.text}]

    def as_text(self) -> str:
        """For the completions API: texts of a conversation, with an empty line between them."""
        return self.text if self.text is not None else "\n\n".join(str(each["content"]) for each in self.messages)


@dataclass(frozen=True)
class Lengths:
    """A number of tokens: the same for each request, or drawn uniformly from `low` to `high`."""

    low: int
    high: int

    @classmethod
    def read(cls, text: str) -> "Lengths":
        """Reads "N" or "LOW:HIGH". Raises ValueError."""
        low, _, high = text.partition(":")
        lengths = cls(int(low), int(high or low))
        if not 1 <= lengths.low <= lengths.high:
            raise ValueError(text)
        return lengths

    def draw(self, chance: random.Random) -> int:
        """Number of tokens of each."""
        return chance.randint(self.low, self.high)


@dataclass(frozen=True)
class Scale:
    """How words become a prompt's tokens on a server: `fixed` tokens around the text, and so many for each word."""

    fixed: float = 0.0
    tokens_per_word: float = 1.0

    def num_words(self, num_tokens: int) -> int:
        """Number of words of a prompt of about `num_tokens` tokens, at least one."""
        return max(1, round((num_tokens - self.fixed) / self.tokens_per_word))


def synthetic(lengths: Lengths, shared_prefix_tokens: int, scale: Scale, seed: int) -> Iterator[Prompt]:
    """Prompts of random words, without end.

    All begin with the same words of `shared_prefix_tokens` tokens. After these, any two of the first
    `len(words) ** 2` prompts differ in the first or the second word, so that a prefix cache finds nothing else.
    """
    chance = random.Random(f"prompts {seed}")
    num_shared = round(shared_prefix_tokens / scale.tokens_per_word) if shared_prefix_tokens else 0
    shared = chance.choices(_WORDS, k=num_shared)
    order = chance.sample(_WORDS, len(_WORDS))
    for index in itertools.count():
        num_words = max(1, scale.num_words(lengths.draw(chance)) - num_shared)
        marks = [order[index % len(order)], order[index // len(order) % len(order)]]
        own = [*marks, *chance.choices(_WORDS, k=max(0, num_words - 2))][:num_words]
        yield Prompt(text=" ".join([*shared, *own]))


def words(num_words: int, seed: int) -> str:
    """A text of random words."""
    return " ".join(random.Random(f"words {seed}").choices(_WORDS, k=num_words))


def of_file(path: Path) -> list[Prompt]:
    """Prompts of a file: a text file with a prompt a line, or JSON lines, or a JSON array.

    An entry of JSON is a text, or an object with `messages` (OpenAI's form), `conversations` (ShareGPT's) or `prompt`.
    A conversation ends with its last message of a user. Raises InvalidRequest with the line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"--prompts: {path} cannot be read: {reason}") from None
    if path.suffix not in (".json", ".jsonl"):
        prompts = [Prompt(text=line) for line in text.splitlines() if line.strip()]
    else:
        prompts = [_entry(entry, f"{path}: {place}") for place, entry in _entries(text, path)]
    if not prompts:
        raise InvalidRequest(f"--prompts: {path} has no prompt")
    return prompts


def repeated(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    """The prompts in a random order, then again from the start, without end."""
    order = list(prompts)
    random.Random(f"order {seed}").shuffle(order)
    return itertools.cycle(order)


def _entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON array or of JSON lines, each with its place."""
    is_array = text.lstrip().startswith("[") and path.suffix == ".json"
    lines = [text] if is_array else text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            place = "" if is_array else f"line {number} "
            raise InvalidRequest(f"--prompts: {path}: {place}is not JSON: {error}") from None
        if is_array:
            yield from ((f"entry {index}", each) for index, each in enumerate(entry, 1))
        else:
            yield f"line {number}", entry


_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}
"""Names of speakers in ShareGPT's form. Others stay as they are."""


def _entry(entry: Any, place: str) -> Prompt:
    if isinstance(entry, str):
        return Prompt(text=entry)
    if isinstance(entry, dict):
        if isinstance(entry.get("prompt"), str):
            return Prompt(text=entry["prompt"])
        if isinstance(entry.get("messages"), list):
            return _conversation(entry["messages"], "role", "content", place)
        if isinstance(entry.get("conversations"), list):
            return _conversation(entry["conversations"], "from", "value", place)
    raise InvalidRequest(
        f"--prompts: {place} is no prompt; give a text, or an object with messages, conversations or prompt"
    )


def _conversation(turns: list[Any], role: str, content: str, place: str) -> Prompt:
    messages = []
    for turn in turns:
        if not (isinstance(turn, dict) and isinstance(turn.get(role), str) and turn.get(content) is not None):
            raise InvalidRequest(f"--prompts: {place} has a message without `{role}` or `{content}`")
        messages.append({"role": _ROLES.get(turn[role], turn[role]), "content": turn[content]})
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages:
        raise InvalidRequest(f"--prompts: {place} has no message of a user")
    return Prompt(messages=tuple(messages))
