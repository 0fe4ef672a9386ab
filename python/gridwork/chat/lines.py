"""Reads what is typed: messages of a line, or of several."""

import sys
from collections.abc import Callable, Iterator, Sequence

_QUOTES = '"""'
PROMPT = "> "
CONTINUED = ". "


def messages(read: Callable[[str], str]) -> Iterator[str]:
    """Messages until the end of the input. `read` returns a line, given a prompt, or raises EOFError.

    A line that ends in a backslash goes on in the next one; so does one that begins with three quotes, until the next
    three. An empty message is left out.
    """
    while True:
        try:
            line = read(PROMPT)
        except EOFError:
            return
        if text := _whole(line, read).strip():
            yield text


def _whole(line: str, read: Callable[[str], str]) -> str:
    """The message that begins with a line."""
    parts: list[str] = []
    try:
        if line.lstrip().startswith(_QUOTES):
            line = line.lstrip()[len(_QUOTES) :]
            while _QUOTES not in line:
                parts.append(line)
                line = read(CONTINUED)
            before, _, after = line.partition(_QUOTES)
            parts.append(before + after)
            return "\n".join(parts).strip("\n")
        while line.endswith("\\"):
            parts.append(line[:-1])
            line = read(CONTINUED)
        parts.append(line)
    except EOFError:
        # Flags that were typed count.
        pass
    return "\n".join(parts)


def reader(commands: Sequence[str]) -> Callable[[str], str]:
    """Reads lines of stdin: on a terminal with editing, a history in memory and completion of `commands`, elsewhere
    without a prompt."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        # Its import is what gives `input` its editing.
        import readline

        def complete(text: str, index: int) -> str | None:
            found = [name for name in commands if name.startswith(text)] if readline.get_begidx() == 0 else []
            return found[index] if index < len(found) else None

        readline.set_completer(complete)
        readline.set_completer_delims(" ")
        readline.parse_and_bind("tab: complete")
        return input

    def read(prompt: str) -> str:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    return read
