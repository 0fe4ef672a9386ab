"""A chat: its history, its commands, its lines, and what of an answer is final."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from gridwork import InvalidRequest
from gridwork.chat import commands, lines, screen
from gridwork.chat.conversation import Conversation, Usage


def talked() -> commands.State:
    conversation = Conversation(system="be brief")
    for question, answer in (("a", "A"), ("b", "B")):
        conversation.ask(question)
        conversation.answer(answer)
    return commands.State(conversation)


def contents(state: commands.State) -> list[str]:
    return [each["content"] for each in state.conversation.messages()]


def test_history_is_undone_cleared_and_asked_again() -> None:
    state = talked()
    assert contents(state) == ["be brief", "a", "A", "b", "B"]
    assert commands.run(state, "/retry").asks == "b" and contents(state) == ["be brief", "a", "A"]
    assert "a" in commands.run(state, "/undo").says and contents(state) == ["be brief"]
    for line in ("/undo", "/retry"):
        with pytest.raises(InvalidRequest, match="no question"):
            commands.run(state, line)
    commands.run(state, "/system answer in French")
    state.conversation.ask("c")
    commands.run(state, "/clear")
    assert contents(state) == ["answer in French"]
    commands.run(state, "/exit")
    assert state.has_ended


def test_a_conversation_is_saved_and_loaded(tmp_path: Path) -> None:
    state, path = talked(), tmp_path / "chat.json"
    commands.run(state, '/set temperature=0.5 stop=["x"] user=ann')
    commands.run(state, f"/save {path}")
    assert json.loads(path.read_text())["temperature"] == 0.5
    other = commands.State(Conversation())
    assert "4 messages" in commands.run(other, f"/load {path}").says
    assert other.conversation == state.conversation
    path.write_text('[{"role": "user", "content": "x"}]')
    commands.run(other, f"/load {path}")
    assert contents(other) == ["x"] and other.conversation.parameters["user"] == "ann"


@pytest.mark.parametrize(
    "line",
    [
        *("/nope", "/", "/load", "/save", "/load /none", "/save /none/x", "/set temperature", "/set 3=4"),
        *("/set model=x", "/set stream=false"),
    ],
)
def test_wrong_commands_say_why_and_change_nothing(line: str) -> None:
    state = talked()
    with pytest.raises(InvalidRequest):
        commands.run(state, line)
    assert state == talked()


def test_a_file_that_is_no_conversation_is_refused(tmp_path: Path) -> None:
    for text in ("{", "3", '{"messages": "x"}', '{"messages": [{"role": "user"}]}'):
        (tmp_path / "a").write_text(text)
        state = talked()
        with pytest.raises(InvalidRequest, match="no conversation"):
            commands.run(state, f"/load {tmp_path / 'a'}")
        assert state == talked()


def test_parameters_are_set_shown_and_removed() -> None:
    state = talked()
    assert commands.run(state, "/set top-p=0.5 seed=3").says == "top_p=0.5 seed=3"
    assert commands.run(state, "/set seed=").says == "top_p=0.5"


def test_help_and_stats() -> None:
    state = talked()
    said = commands.run(state, "/help").says
    assert all(name in said for name in commands.NAMES) and len(commands.NAMES) == 10
    assert "no answer" in commands.run(state, "/stats").says
    state.usages.append(Usage(7, 2, 5, 0.5, 2.5))
    assert "TTFT 500 ms, 2.0 tokens/s" in commands.run(state, "/stats").says


def typed(text: str) -> Callable[[str], str]:
    rest = iter(text.split("\n"))

    def read(prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n  b ", ["a", "b"]),
        ("a\\\nb\\\nc\nd", ["a\nb\nc", "d"]),
        ('"""\na\n\nb\n"""\nc', ["a\n\nb", "c"]),
        ('"""a\nb""" c', ["a\nb c"]),
        ('"""one"""', ["one"]),
        ("a\\", ["a"]),
        ('"""\na', ["a"]),
    ],
)
def test_messages_are_lines_or_several(text: str, expected: list[str]) -> None:
    assert list(lines.messages(typed(text))) == expected


def test_all_blocks_but_the_last_are_final() -> None:
    text = "# Title\n\nA text\nof two lines.\n\n- a\n- b\n\n```py\nx = 1\n\ny = 2\n"
    finished = screen.num_finished(text)
    assert text[finished:] == "```py\nx = 1\n\ny = 2\n"
    assert screen.num_finished("one block\nof lines") == 0 and screen.num_finished("") == 0


def test_markdown_is_rendered_while_it_streams() -> None:
    text = "# Title\n\nSome *words* here.\n\n1. first\n2. second\n\n```py\nx = 1\n```\n\nThe end.\n"
    console = Console(force_terminal=True, width=60, height=8, color_system=None)
    with console.capture() as shown:
        with screen.MarkdownAnswer(console) as answer:
            answer.reason("thinking")
            for at in range(0, len(text), 5):
                answer.add(text[at : at + 5])
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.get())
    for word in ("thinking", "Title", "first", "second", "x = 1", "The end."):
        assert word in said
    assert said.splitlines()[-1].strip() == "The end."
    assert "*words*" not in said and "```" not in said.splitlines()[-1]
