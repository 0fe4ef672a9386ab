"""`gridwork chat`: on a terminal, and with lines of stdin."""

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.paths import GRIDWORK, ROOT
from support.server import Server, child_environment, free_port, wait_for

PATIENCE_S = 180.0
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def environment() -> dict[str, str]:
    search = os.pathsep.join(str(ROOT / each) for each in ("python", "server", "kernels"))
    return child_environment({"PYTHONPATH": search, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"})


def talk(*words: str | Path, said: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A chat without a terminal, to which all is said at once."""
    command = [str(GRIDWORK), "chat", *map(str, words)]
    done = subprocess.run(
        command, input=said, capture_output=True, text=True, env=environment(), timeout=PATIENCE_S, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, *words: str | Path) -> None:
        self._master, slave = pty.openpty()
        command = [str(GRIDWORK), "chat", *map(str, words)]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment(), start_new_session=True,
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(slave)
        self._bytes = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._master, 65536):
                self._bytes += piece
        except OSError:
            pass  # the other end is closed

    @property
    def text(self) -> str:
        """All that was shown, without control characters."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self._bytes.decode(errors="replace"))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self, pattern: str, since: int = 0) -> int:
        """Waits for a text after a place, and returns the place of its end."""
        found: list[int] = []

        def is_there() -> bool:
            if match := re.compile(pattern).search(self.text, since):
                found.append(match.end())
            return bool(found) or self.process.poll() is not None

        wait_for(is_there, PATIENCE_S, f"{pattern!r} is shown")
        assert found, self.text
        return found[0]


def _own_terminal() -> None:
    """Makes stdin the controlling terminal, so that a typed Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(*words: str | Path) -> Iterator[Terminal]:
    shown = Terminal(*words)
    try:
        yield shown
    finally:
        if shown.process.poll() is None:
            shown.process.send_signal(signal.SIGKILL)
        shown.process.wait()


def test_a_model_answers_on_a_terminal(smollm2: Path) -> None:
    with terminal(smollm2, "--dtype", "float32", "--set", "temperature=0") as shown:
        at = shown.wait(r"/help lists the commands.*\n> ")
        shown.type(QUESTION + "\n")
        at = shown.wait(re.escape(ANSWER) + r"\s*\n> ", at)
        shown.type("\x04")
        assert shown.process.wait(PATIENCE_S) == 0


def test_ctrl_c_stops_an_answer_and_not_the_chat(smollm2_server: Server) -> None:
    client = smollm2_server.client
    with terminal(smollm2_server.url, "--set", "temperature=0", "--set", "ignore_eos=true") as shown:
        at = shown.wait(r"/help lists the commands.*\n> ")
        shown.type("/set max_tokens=4000\n")
        at = shown.wait(r"max_tokens=4000\s*\n> ", at)
        shown.type("Count from one to one thousand in words.\n")
        wait_for(lambda: client.metric("gridwork_running_sequences") == 1, PATIENCE_S, "the answer is computed")
        at = shown.wait(r"\w+", at)
        shown.type("\x03")
        at = shown.wait(r"\(stopped\)\s*\n> ", at)
        wait_for(lambda: client.metric("gridwork_running_sequences") == 0, PATIENCE_S, "the request is freed")
        # A line that is dropped, and a question that is answered after all.
        shown.type("never sent\x03")
        at = shown.wait(r"\n> ", at)
        shown.type(f"/clear\n/set max_tokens=8 ignore_eos=\n{QUESTION}\n")
        at = shown.wait(re.escape(ANSWER), at)
        shown.type("/ex\t\n")
        assert shown.process.wait(PATIENCE_S) == 0


def test_lines_of_stdin_are_answered_in_plain_text(smollm2_server: Server, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    said = f'"""\n{QUESTION}\n"""\n/save {saved}\n/undo\n/retry\n'
    done = talk(smollm2_server.url, "--set", "temperature=0", said=said, code=1)
    assert done.stdout == ANSWER + "\n"
    assert "no question" in done.stderr
    body = json.loads(saved.read_text())
    assert body["temperature"] == 0
    assert body["messages"] == [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


def test_history_is_part_of_the_next_question(smollm2_server: Server) -> None:
    said = f"/system Be brief.\n{QUESTION}\n/stats\nAnd of Spain?\n/stats\n"
    done = talk(smollm2_server.url, "--set", "temperature=0", "--set", "max_tokens=8", said=said)
    counts = [int(count) for count in re.findall(r"last answer: (\d+) prompt tokens", done.stderr)]
    assert len(counts) == 2 and counts[1] > counts[0] + 8


def test_what_cannot_be_asked_is_one_clear_message(smollm2_server: Server) -> None:
    refused = talk(smollm2_server.url, "--set", "temperature=-1", said="hi\n", code=1)
    assert "temperature" in refused.stderr and refused.stdout == ""
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert "no server answers at" in talk(nowhere, said="hi\n", code=1).stderr
    assert "--dtype" in talk(smollm2_server.url, "--dtype", "float32", said="hi\n", code=1).stderr
    assert "`model`" in talk(smollm2_server.url, "--set", "model=x", said="hi\n", code=1).stderr
