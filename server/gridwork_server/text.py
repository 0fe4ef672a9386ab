"""Short forms of errors and of lists of names, for messages and logs."""

from collections.abc import Iterable

_MOST_CHARACTERS = 600


def one_line(error: BaseException, typed: bool | None = None) -> str:
    """An error's message as one line of readable length.

    typed: whether the line begins with the name of the error's type. None: only where the message needs it, which those
    of ValueError, OSError and ImportError do not. An error without a message is named by its type in any case.
    """
    text = " ".join(str(error).split())
    if typed is None:
        typed = not isinstance(error, (ValueError, OSError, ImportError))
    if not text:
        return type(error).__name__
    if typed:
        text = f"{type(error).__name__}: {text}"
    return text if len(text) < _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …"


def some(names: Iterable[object]) -> str:
    """The first three names in alphabetical order, and the number of the others."""
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
