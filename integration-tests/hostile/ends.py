"""Faults at the end of a server: processes and folders it leaves, and a log that nobody reads."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from support.client import events_of
from support.server import Server, wait_for

from .faults import Fault, Row, Scene, run_fault
from .traffic import Costs
from .trap import Trap


class UnreadServer(Server):
    """A server whose log goes into a pipe that nobody reads."""

    def _read_logs(self) -> None:
        threading.Event().wait()


def _row(name: str, check: Callable[[Costs], None]) -> Row:
    row = Row(name, Costs(), recovered_s=0.0)
    try:
        check(row.costs)
    except Exception as error:
        row.failure = f"{type(error).__name__}: {error}"
    return row


def given_up(flags: list[str], trap: Trap, folder: Path) -> Row:
    """No shard restarts: streams get an error, other requests get 503, and all processes end."""
    broken = folder / "broken"
    shutil.copytree(trap.folder, broken)

    def check(costs: Costs) -> None:
        with Server("--model-id", broken, *flags, "--max-restarts", 1) as server:
            server.ends_by_itself()
            statuses = []

            def ask() -> None:
                body = {"inputs": "map", "parameters": {"max_new_tokens": 900}}
                response = httpx.post(server.url + "/generate", json=body, timeout=60, trust_env=False)
                statuses.append((response.status_code, response.text))

            body = {"inputs": "The boats", "parameters": {"max_new_tokens": 900}}
            asking = threading.Thread(target=ask)
            events = []
            with server.client.http.stream("POST", "/generate_stream", json=body) as response:
                stream = events_of(response)
                events.append(next(stream))
                asking.start()
                wait_for(lambda: server.client.metric("gridwork_running_sequences") == 2, 20, "both run")
                (broken / "config.json").write_text("{}")
                os.kill(server.shards()[0].pid, signal.SIGKILL)
                try:
                    events.extend(stream)
                except httpx.HTTPError as error:
                    costs.add("lost", 1, f"the stream broke: {error}")
            asking.join()
            if "error" not in events[-1]:
                costs.add("lost", 1, f"no error event: {json.dumps(events[-1])}")
            if statuses[0][0] != 503:
                costs.add("lost", 1, f"not 503: {statuses}")
            assert "restarts in a row" in events[-1].get("error", ""), events[-1]
            assert server.wait_exit(30) == 1
            server.assert_nothing_survives()

    return _row("end: no shard comes back", check)


def left_over(flags: list[str], model: Path, folder: Path) -> Row:
    """The next launcher removes the folder of a killed one."""
    temporary = folder / "left-over"
    temporary.mkdir()
    env = {"TMPDIR": str(temporary)}

    def left() -> list[str]:
        return sorted(path.name for path in temporary.glob("gridwork-*"))

    def check(_: Costs) -> None:
        with Server("--model-id", model, *flags, env=env) as server:
            server.ends_by_itself()
            os.kill(server.pid, signal.SIGKILL)
            server.assert_nothing_survives()
        before = left()
        assert len(before) == 1, before
        with Server("--model-id", model, *flags, env=env):
            with Server("--model-id", model, *flags, env=env):
                assert len(left()) == 2 and before[0] not in left(), "the dead one's is gone, the living one's is not"
        assert left() == [], left()

    return _row("end: kill -9 of the launcher leaves nothing for long", check)


def unread_log(flags: list[str], trap: Trap, right: list[list[int]], folder: Path) -> list[Row]:
    """A log that nobody reads delays no request."""
    umask = os.umask(0)
    try:
        server = UnreadServer("--model-id", trap.folder, *flags, "--log-level", "trace")
        server.start()
    finally:
        os.umask(umask)
    rows = []
    try:
        server.wait_ready()
        scene = Scene(server, trap, right, folder)

        def flood(scene: Scene) -> None:
            for _ in range(3):
                scene.obey("flood", 30)

        def killed(scene: Scene) -> None:
            with scene.restarting(scene.shard_ids):
                os.kill(scene.shard_ids()[0], signal.SIGKILL)

        def rights(scene: Scene) -> None:
            command = server.shards()[0].cmdline()
            path = Path(command[command.index("--socket") + 1])
            modes = [path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777]
            assert modes == [0o700, 0o600], [oct(mode) for mode in modes]

        rows.append(run_fault(scene, Fault("log: 15 MB that nobody reads", flood)))
        rows.append(run_fault(scene, Fault("log: nobody reads it while a shard is killed", killed)))
        rows.append(run_fault(scene, Fault("umask 0: folder and socket are private", rights)))

        def ends(_: Costs) -> None:
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0

        rows.append(_row("log: nobody reads it at the end", ends))
    finally:
        server.kill()
    return rows


def closed_log(flags: list[str], trap: Trap, right: list[list[int]], folder: Path) -> Row:
    """The reader of the log closes it."""
    server = UnreadServer("--model-id", trap.folder, *flags)
    server.start()
    try:
        server.wait_ready()
        assert server.process is not None and server.process.stdout is not None
        server.process.stdout.close()
        scene = Scene(server, trap, right, folder)

        def flood(scene: Scene) -> None:
            scene.obey("flood", 30)

        return run_fault(scene, Fault("log: its reader goes away", flood))
    finally:
        server.kill()


def secrets(flags: list[str], model: Path) -> Row:
    """Keys and tokens of the launcher's environment do not reach the shards."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY")
    env = {name: "whisper" for name in names} | {"API_KEY": "whisper"}

    def check(_: Costs) -> None:
        with Server("--model-id", model, *flags, env=env) as server:
            for shard in server.shards():
                found = [name for name, value in shard.environ().items() if "whisper" in value]
                assert not found, found
            assert "whisper" not in server.log()

    return _row("secrets: none in the environment of shards", check)


def refused_folders(model: Path, folder: Path) -> list[Row]:
    """Model folders with links out of themselves, and others that cannot be served."""

    def template(path: Path) -> None:
        (path / "chat_template.jinja").unlink(missing_ok=True)
        (path / "chat_template.jinja").symlink_to("/proc/self/environ")

    def weights(path: Path) -> None:
        shutil.move(path / "model.safetensors", path.parent / f"{path.name}.outside.safetensors")
        index = {"metadata": {}, "weight_map": {"x": f"../{path.name}.outside.safetensors"}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    def code(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "/tmp/evil.Config", "AutoModelForCausalLM": "/tmp/evil.Model"}
        (path / "config.json").write_text(json.dumps(config))

    def pipe(path: Path) -> None:
        (path / "generation_config.json").unlink(missing_ok=True)
        os.mkfifo(path / "generation_config.json")

    def name(path: Path) -> None:
        index = {"weight_map": {"x": "\x1b]0;owned\x07.safetensors"}}
        (path / "model.safetensors").unlink()
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    rows: list[Row] = []
    for what, spoil, expected in [
        ("a link to /proc/self/environ", template, "leads out"),
        ("a weight map that leads out", weights, "leads out"),
        ("code at an absolute path", code, "auto_map"),
        ("a pipe in place of a file", pipe, "neither a file nor a folder"),
        ("control characters in a name", name, "is missing"),
    ]:
        path = folder / f"folder-{len(rows)}"
        shutil.copytree(model, path)
        spoil(path)

        def check(_: Costs, path: Path = path, expected: str = expected) -> None:
            server = Server("--model-id", path, "--trust-remote-code")
            server.start()
            try:
                code = server.wait_exit(30)
                assert code == 1, server.log_tail()
                assert expected in server.log(), server.log_tail()
                assert "\x1b" not in server.log(), repr(server.log_tail())
            finally:
                server.kill()

        rows.append(_row(f"folder: {what}", check))
    return rows


def endless_templates(flags: list[str], model: Path, folder: Path) -> list[Row]:
    """Chat templates that never end, or grow without end, harm only their own requests."""
    templates = {
        "endless loops": "{% for a in range(100000) %}{% for b in range(100000) %}{{ b }}{% endfor %}{% endfor %}",
        "doublings": "{% set ns = namespace(t='x' * 1000) %}{% for a in range(40) %}{% set ns.t = ns.t + ns.t %}"
        "{% endfor %}{{ ns.t }}",
        "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    }
    rows: list[Row] = []
    for what, text in templates.items():
        path = folder / f"template-{len(rows)}"
        shutil.copytree(model, path)
        (path / "chat_template.jinja").write_text(text)

        def check(costs: Costs, path: Path = path) -> None:
            with Server("--model-id", path, *flags) as server:
                body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
                statuses = []

                def ask() -> None:
                    url = server.url + "/v1/chat/completions"
                    try:
                        statuses.append(httpx.post(url, json=body, timeout=30, trust_env=False).status_code)
                    except httpx.HTTPError:
                        statuses.append(0)

                asking = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
                for thread in asking:
                    thread.start()
                time.sleep(0.3)
                for _ in range(5):
                    began = time.monotonic()
                    try:
                        response = httpx.get(server.url + "/health", timeout=10, trust_env=False)
                        assert response.status_code == 200
                    except httpx.HTTPError as error:
                        costs.add("lost", 1, f"health: {type(error).__name__}")
                    assert time.monotonic() - began < 5, "health waited"
                for thread in asking:
                    thread.join(40)
                assert len(statuses) == 4 and min(statuses) >= 400, statuses
                memory = server.router().memory_info().rss
                assert memory < 1 << 30, f"{memory / 1e9:.1f} GB"
                assert server.client.generate("The boats", max_new_tokens=2).token_ids

        rows.append(_row(f"template: {what}", check))
    return rows
