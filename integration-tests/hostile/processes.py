"""Faults of a single shard, its router and its launcher."""

import functools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from support.models import KILL, NAN
from support.server import wait_for

from .faults import Faults, Scene
from .traffic import PROMPTS

FAULTS = Faults()


def _kill(scene: Scene, which: int = signal.SIGKILL) -> None:
    scene.restart_by_signal(scene.shard_ids, which)


def _health(scene: Scene) -> tuple[int, str]:
    try:
        response = httpx.get(scene.server.url + "/health", timeout=5, trust_env=False)
    except httpx.HTTPError as error:
        return 0, str(error)
    return response.status_code, response.text


def _hangs_until_restarted(scene: Scene, order: str) -> None:
    """Checks that a hanging model makes `/health` 503, and that another shard replaces it."""
    with scene.restarting(scene.shard_ids):
        scene.obey(order)
        seen: list[str] = []

        def is_told() -> bool:
            status, text = _health(scene)
            seen.append(text)
            return status == 503 and "has not answered" in text

        wait_for(is_told, 30, "/health is 503, and says that the shard does not answer")


def _pauses(processes: Callable[[], list[int]]) -> None:
    """Stops the first process for a second, which must not restart it."""
    before = processes()
    os.kill(before[0], signal.SIGSTOP)
    time.sleep(1)
    os.kill(before[0], signal.SIGCONT)
    time.sleep(1)
    assert processes() == before, "it was restarted for nothing"


def _socket(scene: Scene) -> Path:
    command = scene.server.shards()[0].cmdline()
    return Path(command[command.index("--socket") + 1])


@FAULTS.add("shard: kill -9")
def _(scene: Scene) -> None:
    _kill(scene)


@FAULTS.add("shard: kill -9, and its successor while it starts")
def _(scene: Scene) -> None:
    first = scene.shard_ids()[0]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: scene.shard_ids() not in ([], [first]), 30, "a second shard is started")
    second = scene.shard_ids()[0]
    time.sleep(0.5)
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: scene.shard_ids() not in ([], [first], [second]), 30, "a third shard is started")


@FAULTS.add("shard: SIGTERM")
def _(scene: Scene) -> None:
    _kill(scene, signal.SIGTERM)


@FAULTS.add("shard: SIGSTOP")
def _(scene: Scene) -> None:
    with scene.restarting(scene.shard_ids):
        os.kill(scene.shard_ids()[0], signal.SIGSTOP)
        wait_for(lambda: _health(scene)[0] == 503, 30, "/health is 503")


@FAULTS.add("shard: SIGSTOP for a second")
def _(scene: Scene) -> None:
    _pauses(scene.shard_ids)


@FAULTS.add("model code: exits the process")
def _(scene: Scene) -> None:
    with scene.restarting(scene.shard_ids):
        scene.obey("exit")


@FAULTS.add("model code: segmentation fault")
def _(scene: Scene) -> None:
    with scene.restarting(scene.shard_ids):
        scene.obey("segfault")


for _what, _order in {
    "sleeps for ever": "hang",
    "endless loop": "spin",
    "holds the interpreter's lock for ever": "deaf",
}.items():
    FAULTS.add(f"model code: {_what}")(functools.partial(_hangs_until_restarted, order=_order))


@FAULTS.add("model code: one slow step")
def _(scene: Scene) -> None:
    before = scene.shard_ids()
    scene.obey("slow")
    time.sleep(2.5)
    assert scene.shard_ids() == before, "it was restarted for nothing"


for _error, _order in {
    "RuntimeError": "raise",
    "MemoryError": "memory",
    "torch.OutOfMemoryError": "gpu-memory",
    "SystemExit": "system-exit",
}.items():
    FAULTS.add(f"model code: {_error} in a step")(functools.partial(Scene.obey, order=_order))


@FAULTS.add("model code: prints 5 MB")
def _(scene: Scene) -> None:
    scene.obey("flood")
    wait_for(lambda: "flood 49999" in scene.server.log(), 30, "the log shows it")


@FAULTS.add("model code: prints control characters")
def _(scene: Scene) -> None:
    scene.obey("terminal")
    wait_for(lambda: "obeyed" in scene.server.log(), 10, "the log shows it")
    assert "\x1b" not in scene.server.log(), "the log has escape sequences"


@FAULTS.add("request: NaN logits")
def _(scene: Scene) -> None:
    body = {"inputs": f"bad {NAN} day", "parameters": {"max_new_tokens": 4}}
    response = scene.server.client.post("/generate", body)
    assert response.status_code == 424 and "NaN" in response.text, response.text


@FAULTS.add("request: kills every shard that computes it")
def _(scene: Scene) -> None:
    body = {"inputs": f"the {KILL}{KILL} word", "parameters": {"max_new_tokens": 4}}
    response = scene.server.client.post("/generate", body)
    assert response.status_code == 424 and "died" in response.text, response.text


@FAULTS.add("socket of the shard: removed")
def _(scene: Scene) -> None:
    path, before = _socket(scene), scene.shard_ids()
    path.unlink()
    wait_for(path.exists, 30, "the socket is there again")
    assert scene.shard_ids() == before, "the shard was restarted for it"


@FAULTS.add("socket of the shard: removed, then the router killed", cuts_connections=True)
def _(scene: Scene) -> None:
    with scene.restarting(scene.router_ids):
        _socket(scene).unlink()
        os.kill(scene.router_ids()[0], signal.SIGKILL)


@FAULTS.add("folder of sockets: removed")
def _(scene: Scene) -> None:
    path = _socket(scene)
    with scene.restarting(scene.shard_ids):
        shutil.rmtree(path.parent)
    wait_for(path.exists, 60, "the socket is there again")


@FAULTS.add("folder of sockets: rights are for its user alone")
def _(scene: Scene) -> None:
    path = _socket(scene)
    assert path.parent.stat().st_mode & 0o777 == 0o700, oct(path.parent.stat().st_mode)
    assert path.stat().st_mode & 0o777 == 0o600, oct(path.stat().st_mode)


FAULTS.restart("router: kill -9", Scene.router_ids, signal.SIGKILL, cuts_connections=True)
FAULTS.restart("router: SIGSTOP", Scene.router_ids, signal.SIGSTOP, cuts_connections=True)


@FAULTS.add("router: SIGSTOP for a second")
def _(scene: Scene) -> None:
    _pauses(scene.router_ids)


@FAULTS.add("router and shard: kill -9 at once", cuts_connections=True)
def _(scene: Scene) -> None:
    with scene.restarting(scene.router_ids), scene.restarting(scene.shard_ids):
        for pid in scene.router_ids() + scene.shard_ids():
            os.kill(pid, signal.SIGKILL)


@FAULTS.add("launcher: SIGSTOP for a second")
def _(scene: Scene) -> None:
    os.kill(scene.server.pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(scene.server.pid, signal.SIGCONT)


@FAULTS.add("all processes: stopped for longer than every limit")
def _(scene: Scene) -> None:
    before = scene.shard_ids() + scene.router_ids()
    everyone = [scene.server.pid, *before]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(9)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    time.sleep(2)
    assert scene.shard_ids() + scene.router_ids() == before, "a pause of the machine restarted something"


@FAULTS.add("shard: killed while nobody asks for anything")
def _(scene: Scene) -> None:
    wait_for(lambda: scene.server.client.metric("gridwork_running_sequences") == 0, 60, "idle")
    _kill(scene)
    assert scene.server.client.generate(PROMPTS[0], max_new_tokens=4)
