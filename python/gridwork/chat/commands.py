"""Commands of a chat: lines that begin with a slash."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gridwork.chat.conversation import Conversation, Usage
from gridwork.errors import InvalidRequest


@dataclass
class State:
    """State that commands read and change."""

    conversation: Conversation
    usages: list[Usage] = field(default_factory=list)
    """Figures of all answers so far."""
    has_ended: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of a command."""

    says: str = ""
    asks: str | None = None
    """A question that is to be asked."""


def run(state: State, line: str) -> Outcome:
    """Runs the command of a line. Raises InvalidRequest, which says what is wrong with it."""
    name, _, rest = line.removeprefix("/").partition(" ")
    if name not in _COMMANDS:
        raise InvalidRequest(f"there is no command /{name}; /help lists them (a space before a message sends it)")
    return _COMMANDS[name][1](state, rest.strip())


def _help(state: State, rest: str) -> Outcome:
    width = max(len(usage) for usage, _, _ in _HELP)
    lines = [f"{usage:<{width}}  {about}" for usage, about, _ in _HELP]
    lines += [
        "",
        'A line that ends in a backslash goes on in the next one; """ begins and ends a text of several lines.',
        "Ctrl-C stops an answer, Ctrl-D ends the chat.",
    ]
    return Outcome("\n".join(lines))


def _system(state: State, rest: str) -> Outcome:
    if not rest:
        return Outcome(state.conversation.system or "there is no system message; /system TEXT sets one")
    state.conversation.system = rest
    return Outcome("the system message is set")


def _clear(state: State, rest: str) -> Outcome:
    state.conversation.clear()
    return Outcome("the conversation is empty")


def _undo(state: State, rest: str) -> Outcome:
    question = state.conversation.undo()
    if question is None:
        raise InvalidRequest("there is no question to undo")
    return Outcome(f"removed: {question}")


def _retry(state: State, rest: str) -> Outcome:
    question = state.conversation.undo()
    if question is None:
        raise InvalidRequest("there is no question to ask again")
    return Outcome(asks=question)


def _save(state: State, rest: str) -> Outcome:
    path = _path(rest, "save")
    state.conversation.save(path)
    return Outcome(f"saved as {path}")


def _load(state: State, rest: str) -> Outcome:
    path = _path(rest, "load")
    state.conversation.load(path)
    return Outcome(f"{path}: {len(state.conversation.turns)} messages")


def _path(rest: str, command: str) -> Path:
    if not rest:
        raise InvalidRequest(f"/{command} needs a file; /{command} FILE")
    return Path(rest).expanduser()


def _set(state: State, rest: str) -> Outcome:
    for word in rest.split():
        state.conversation.set(word)
    parameters = state.conversation.parameters
    return Outcome(" ".join(f"{name}={value}" for name, value in parameters.items()) or "the model's own defaults")


def _stats(state: State, rest: str) -> Outcome:
    if not state.usages:
        return Outcome("there is no answer yet")
    output_tokens = sum(usage.output_tokens for usage in state.usages)
    lines = [f"last answer: {state.usages[-1].text()}", f"all {len(state.usages)}: {output_tokens} tokens of answers"]
    return Outcome("\n".join(lines))


def _exit(state: State, rest: str) -> Outcome:
    state.has_ended = True
    return Outcome()


_HELP: tuple[tuple[str, str, Callable[[State, str], Outcome]], ...] = (
    ("/help", "list the commands", _help),
    ("/system [TEXT]", "show or set the system message", _system),
    ("/clear", "forget the conversation", _clear),
    ("/undo", "remove the last question and its answer", _undo),
    ("/retry", "ask the last question again", _retry),
    ("/save FILE", "write messages and parameters as JSON", _save),
    ("/load FILE", "go on with a conversation that was saved", _load),
    ("/set [NAME=VALUE …]", "show or set parameters, such as temperature=0.7; an empty value removes one", _set),
    ("/stats", "tokens and times", _stats),
    ("/exit", "end the chat", _exit),
)

_COMMANDS = {usage.split()[0].removeprefix("/"): (about, call) for usage, about, call in _HELP}
NAMES = tuple(f"/{name}" for name in _COMMANDS)
"""Names of the commands, for completion."""
