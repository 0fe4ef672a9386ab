"""The package in a clean container: a Debian with its own Python, a package index, the wheel and a model's folder.

`make test-wheel` names the image in $GRIDWORK_TEST_BASE where Docker is there.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PATIENCE_S = 1500.0

pytestmark = pytest.mark.skipif(
    "GRIDWORK_TEST_BASE" not in os.environ, reason="$GRIDWORK_TEST_BASE names no image; `make test-wheel` makes one"
)


class Container:
    """A running container with the package installed into /venv. Its user has no rights beyond /home/user."""

    def __init__(self, id: str) -> None:
        self.id = id

    def run(self, *words: str, user: str = "user", stdin: str = "") -> str:
        """Runs a program, and returns what it wrote to stdout."""
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {"HF_HUB_OFFLINE": "1", "HOME": home, "TERM": "xterm"}
        variables["PATH"] = "/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        command = ["docker", "exec", "-i", "-u", user, "-w", home]
        for name, value in variables.items():
            command += ["-e", f"{name}={value}"]
        done = subprocess.run(
            [*command, self.id, *words], input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self) -> list[str]:
        """Programs that run, besides the container's own."""
        script = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null"
        lines = self.run("sh", "-c", script, user="root").splitlines()
        return [line for line in lines if "gridwork" in line]


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    wheel = Path(os.environ["GRIDWORK_TEST_WHEEL"]).resolve()
    mounts = ["-v", f"{wheel.parent}:/dist:ro", "-v", f"{SMOLLM2}:/model:ro"]
    if CERTIFICATES.is_file():
        mounts += ["-v", f"{CERTIFICATES}:{CERTIFICATES}:ro", "-e", f"PIP_CERT={CERTIFICATES}"]
    options = ["-d", "--rm", "--init", "--network", "host", "--shm-size", "1g", *mounts]
    command = ["docker", "run", *options, os.environ["GRIDWORK_TEST_BASE"], "sleep", "infinity"]
    started = subprocess.run(command, capture_output=True, text=True, check=True)
    running = Container(started.stdout.strip())
    try:
        running.run("apt-get", "update", "-q", user="root")
        running.run("apt-get", "install", "-q", "-y", "--no-install-recommends", "python3-venv", user="root")
        running.run("useradd", "--create-home", "user", user="root")
        running.run("python3", "-m", "venv", "/venv", user="root")
        running.run("/venv/bin/pip", "install", "-q", "--no-cache-dir", f"/dist/{wheel.name}", user="root")
        yield running
    finally:
        subprocess.run(["docker", "rm", "-f", running.id], capture_output=True, check=False)


def test_the_first_lines_of_the_page_print_what_it_says(container: Container) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL)
    assert found is not None
    program = found[1].replace("HuggingFaceTB/SmolLM2-135M-Instruct", "/model")
    assert container.run("python", "-c", program) == found[2]
    assert container.processes() == []


def test_a_chat_in_a_terminal_answers(container: Container) -> None:
    program = """
import os, pty, signal, sys
signal.alarm(300)
child, terminal = pty.fork()
if child == 0:
    os.execvp("gridwork", "gridwork chat /model --dtype float32 --set temperature=0".split())
shown = ""
for typed, expected in [("", "> "), ("What is the capital of France?\\n", "Paris."), ("/exit\\n", None)]:
    os.write(terminal, typed.encode())
    while expected is None or expected not in shown:
        try:
            shown += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the chat has ended
            break
print(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert "The capital of France is Paris." in container.run("python", "-c", program)
    assert container.processes() == []


def test_a_server_answers_and_ends(container: Container) -> None:
    program = """
import json, signal, subprocess, time, urllib.request
server = subprocess.Popen(["gridwork", "serve", "/model", "--uds", "socket"])
from gridwork import LLM
while True:
    try:
        llm = LLM("unix:/home/user/socket")
        break
    except Exception:
        assert server.poll() is None
        time.sleep(0.2)
question = [{"role": "user", "content": "What is the capital of France?"}]
print(llm.chat(question, {"temperature": 0, "max_tokens": 20}, use_tqdm=False)[0].text)
llm.close()
server.send_signal(signal.SIGTERM)
assert server.wait(60) == 0
"""
    assert container.run("python", "-c", program).splitlines()[-1] == "The capital of France is Paris."
    assert container.processes() == []


def test_the_kernels_and_programs_are_those_of_the_package(container: Container) -> None:
    lines = container.run("gridwork", "env").splitlines()
    assert "Router: /venv/bin/gridwork-router" in lines
    assert "Server: /venv/bin/gridwork-server" in lines
    assert any(line.startswith("CPU kernels: ") for line in lines)
