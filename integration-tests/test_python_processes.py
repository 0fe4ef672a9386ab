"""Lives and deaths of the processes behind an `LLM`: nothing outlives it, however it ends."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from gridwork import LLM, EngineDied, SamplingParams
from support.paths import GRIDWORK, LONG, ROOT
from support.server import wait_for

os.environ.setdefault("GRIDWORK_BIN", str(GRIDWORK))

GREEDY = {"temperature": 0, "max_tokens": 4}
ENDLESS = {"temperature": 0, "max_tokens": 1000, "ignore_eos": True}
PATIENCE_S = 60.0


class Script:
    """A Python program that makes an `LLM` as `llm`, with a folder for temporary files of its own."""

    def __init__(self, folder: Path, model: Path, text: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        path = folder / "script.py"
        made = f"llm = LLM({str(model)!r}, dtype='float32')\n"
        # Goes on when its processes have been seen.
        ready = 'print("ready", llm.pid, flush=True)\nsys.stdin.readline()\n'
        # Children that are spawned import this file again.
        body = textwrap.indent(made + ready + textwrap.dedent(text), "    ")
        path.write_text(f"{_HEAD}\nif __name__ == '__main__':\n{body}")
        search = os.pathsep.join(str(ROOT / each) for each in ("python", "server", "kernels"))
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(self.temporary), "PYTHONPATH": search},
            start_new_session=True,
        )
        self._family: list[psutil.Process] = []

    def wait_for(self, word: str) -> str:
        """Waits for a line that begins with a word; returns the rest of it."""
        assert self.process.stdout is not None and self.process.stderr is not None
        for line in self.process.stdout:
            if line.startswith(word):
                self._family += psutil.Process(self.process.pid).children(recursive=True)
                return line.removeprefix(word).strip()
        raise AssertionError(f"no line {word!r}:\n{self.process.stderr.read()}")

    def start(self) -> None:
        """Waits until its server runs, then lets it go on."""
        self.wait_for("ready")
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def wait_end(self) -> tuple[int, str]:
        """Waits for the end of the program, and that nothing of it is left; returns exit code and output."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert len({process.pid for process in self._family}) >= 3, "launcher, router and shard were seen"
        wait_for(lambda: not any(runs(process) for process in self._family), 20, "no process is left")
        wait_for(lambda: not self._left(), 10, f"nothing is left: {self._left()}")
        return self.process.returncode, out + err

    def _left(self) -> list[str]:
        return [path.name for path in self.temporary.iterdir() if path.name.startswith("gridwork-")]

    def kill(self) -> None:
        for process in self._family:
            if runs(process):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


_HEAD = """
import asyncio, atexit, multiprocessing, os, signal, sys, threading, time
from gridwork import LLM, AsyncLLM, EngineDied
GREEDY = {"temperature": 0, "max_tokens": 4}
ENDLESS = {"temperature": 0, "max_tokens": 1000, "ignore_eos": True}
def tell(text):
    print(text, flush=True)
def child(model):
    with LLM(model, dtype="float32") as llm:
        tell(f"child {llm.generate('a', GREEDY, use_tqdm=False)[0].outputs[0].token_ids}")
"""


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.fixture
def script(tmp_path: Path, tiny: Callable[[str], Path]) -> Iterator[Callable[[str], Script]]:
    made: list[Script] = []

    def make(text: str) -> Script:
        made.append(Script(tmp_path, tiny("llama"), text))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.kill()


# --- deaths of the program ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError('a bug')", 1),
        ("with llm: raise ValueError('a bug')", 1),
        ("threading.Thread(target=llm.generate, args=('a', ENDLESS), daemon=True).start(); time.sleep(0.5)", 0),
        ("stream = llm.generate('a', ENDLESS, stream=True); next(stream)", 0),
        ("del llm", 0),
    ],
    ids=["end", "exit", "exception", "with", "while a thread generates", "inside a stream", "del"],
)
def test_a_program_that_ends_leaves_nothing(script: Callable[[str], Script], text: str, code: int) -> None:
    assert script(text).wait_end()[0] == code


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_killed_leaves_nothing(script: Callable[[str], Script], sent: signal.Signals) -> None:
    running = script("tell('generating'); llm.generate(['a'] * 20, ENDLESS)")
    running.wait_for("generating")
    time.sleep(0.3)
    os.kill(running.process.pid, sent)
    assert running.wait_end()[0] == -sent


def test_ctrl_c_ends_the_call_and_not_the_model(script: Callable[[str], Script]) -> None:
    running = script("""
        tell("generating")
        try:
            llm.generate(["a"] * 20, ENDLESS, use_tqdm=False)
        except KeyboardInterrupt:
            tell(f"interrupted {len(llm.generate('a', GREEDY, use_tqdm=False)[0].outputs[0].token_ids)}")
    """)
    running.wait_for("generating")
    time.sleep(0.5)
    # As a terminal does it: to the whole group.
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.wait_for("interrupted") == "4"
    assert running.wait_end()[0] == 0


def test_a_killed_program_takes_along_a_server_whose_link_a_forked_child_has_inherited(
    script: Callable[[str], Script],
) -> None:
    running = script("""
        forked = os.fork()
        if forked == 0:
            try:
                llm.generate("a", GREEDY)
            except EngineDied as error:
                print("forked", error, flush=True)
            time.sleep(30)
            os._exit(0)
        time.sleep(30)
    """)
    assert "the process that made it" in running.wait_for("forked")
    [*children] = psutil.Process(running.process.pid).children()
    os.kill(running.process.pid, signal.SIGKILL)
    launcher = next(each for each in children if "gridwork" in each.name())
    wait_for(lambda: not runs(launcher), 20, "the launcher has ended while the forked child lives")
    for each in children:
        if runs(each):
            each.kill()


def test_children_that_are_spawned_make_their_own(script: Callable[[str], Script]) -> None:
    running = script("""
        model = llm.info["model_id"]
        context = multiprocessing.get_context("spawn")
        children = [context.Process(target=child, args=(model,)) for _ in range(2)]
        for each in children: each.start()
        for each in children: each.join()
        tell(f"own {llm.generate('a', GREEDY, use_tqdm=False)[0].outputs[0].token_ids}")
    """)
    code, output = running.wait_end()
    lines = [line.partition(" ")[2] for line in output.splitlines() if line.startswith(("child", "own"))]
    assert code == 0 and len(lines) == 3 and len({*lines}) == 1, output


def test_an_asynchronous_program_leaves_nothing(script: Callable[[str], Script]) -> None:
    running = script("""
        async def main():
            twin = AsyncLLM(llm.info["model_id"], dtype="float32")
            task = asyncio.ensure_future(twin.generate("a", ENDLESS))
            await twin.wait_ready()
            await asyncio.sleep(0.3)
            tell("both")
        asyncio.run(main())
    """)
    running.wait_for("both")
    code, output = running.wait_end()
    assert code == 0, output


# --- deaths of the server -----------------------------------------------------------------------------------------


def test_a_killed_launcher_is_told_and_leaves_nothing(tiny: Callable[[str], Path]) -> None:
    llm = LLM(tiny("llama"), dtype="float32")
    assert llm.pid is not None
    launcher = psutil.Process(llm.pid)
    family = launcher.children(recursive=True)
    socket = Path(llm._engine._server.wait_ready().socket)  # type: ignore[union-attr]
    threading.Timer(0.5, launcher.kill).start()
    with pytest.raises(EngineDied, match="SIGKILL"):
        llm.generate(["a"] * 4, ENDLESS, use_tqdm=False)
    with pytest.raises(EngineDied, match="SIGKILL"):
        llm.generate("a", use_tqdm=False)
    wait_for(lambda: not any(runs(each) for each in family), 10, "its children are gone")
    llm.close()
    assert not socket.parent.exists()


def test_a_lost_router_loses_its_requests_and_a_lost_shard_none(tiny: Callable[[str], Path]) -> None:
    with LLM(tiny("llama"), dtype="float32") as llm:
        assert llm.pid is not None
        prompts = [[number + 3, 5] for number in range(8)]
        params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
        expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]

        def child(name: str) -> psutil.Process:
            children = psutil.Process(llm.pid).children()
            return next(each for each in children if any(name in word for word in each.cmdline()))

        threading.Timer(0.2, lambda: child("gridwork_server").kill()).start()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        threading.Timer(0.2, lambda: child("gridwork-router").kill()).start()
        with pytest.raises(EngineDied):
            llm.generate(prompts, ENDLESS, use_tqdm=False)

        def answers() -> bool:
            try:
                return len(llm.generate(prompts[0], GREEDY, use_tqdm=False)) == 1
            except EngineDied:
                return False

        wait_for(answers, PATIENCE_S, "the router was started again")


def test_closing_ends_calls_of_other_threads(tiny: Callable[[str], Path]) -> None:
    llm = LLM(tiny("llama"), dtype="float32")
    threading.Timer(0.5, llm.close).start()
    with pytest.raises(EngineDied, match="closed"):
        llm.generate(["a"] * 4, ENDLESS, use_tqdm=False)


# --- leaks --------------------------------------------------------------------------------------------------------


def traces(temporary: Path) -> dict[str, object]:
    """Traces that an LLM might leave in this process and on this machine."""
    this = psutil.Process()
    return {
        "files": sorted(os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in open_files()),
        "children": [each.pid for each in this.children(recursive=True) if runs(each)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "temporary": sorted(path.name for path in temporary.iterdir()),
        "shared memory": sorted(name for name in os.listdir("/dev/shm") if "gridwork" in name or "torch" in name),
    }


def open_files() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


def test_nothing_is_left_by_many_lives(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def live() -> list[int]:
        with LLM(tiny("llama"), dtype="float32") as llm:
            return llm.generate([[3, 4, 5]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids

    expected = live()
    before = traces(tmp_path)
    for _ in range(100 if LONG else 5):
        assert live() == expected
    assert traces(tmp_path) == before


def test_several_live_together(tiny: Callable[[str], Path]) -> None:
    with LLM(tiny("llama"), dtype="float32") as one, LLM(tiny("llama"), dtype="float32") as two:
        assert one.pid != two.pid
        results: dict[int, list[int]] = {}

        def work(number: int, llm: LLM) -> None:
            outputs = llm.generate([[3, 4, 5]] * 20, GREEDY, use_tqdm=False)
            results[number] = [token for output in outputs for token in output.outputs[0].token_ids]

        threads = [threading.Thread(target=work, args=(number, (one, two)[number % 2])) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 6 and len({tuple(tokens) for tokens in results.values()}) == 1
