"""The commands beside the server: `gridwork env`, `check` and `run-batch`."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import reference
from support.paths import GRIDWORK, ROOT
from support.server import Server, child_environment, wait_for

PATIENCE_S = 180.0


def environment() -> dict[str, str]:
    search = os.pathsep.join(str(ROOT / each) for each in ("python", "server", "kernels"))
    return child_environment({"PYTHONPATH": search})


def run(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(GRIDWORK), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_report_has_versions_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    text = run("env").stdout
    for line in ("Gridwork: ", "Git commit: ", "Python: 3.", "torch: 2.", "transformers: 5.", "CPU kernels: ", "CPU: "):
        assert any(each.startswith(line) for each in text.splitlines()), text
    assert "OMP_WAIT_POLICY=passive" in text and "HF_TOKEN=***" in text and "hush" not in text


def test_a_model_is_checked_against_transformers(smollm2: Path, tmp_path: Path) -> None:
    text = run("check", smollm2, "--dtype", "float32", "--max-model-len=512").stdout
    assert "on the paged path, float32" in text and "512 tokens of prompt and answer" in text
    assert text.count("equal tokens") == 4 and "other tokens" not in text
    (tmp_path / "empty").mkdir()
    said = run("check", tmp_path / "empty", code=1).stderr
    assert said.startswith("error: ") and "config.json" in said
    assert "--dtype" in run("check", smollm2, "--dtype", "int3", code=1).stderr


def test_serve_and_flags_of_other_servers_start_a_server(tiny: Callable[[str], Path]) -> None:
    flags = ("serve", tiny("llama"), "--max_model_len", "64", "--enable-prefix-caching", "--enable-auto-tool-choice")
    with Server(*flags) as server:
        assert server.client.get("/info").json()["max_total_tokens"] == 64
        assert "--enable-auto-tool-choice has no effect" in server.log()
    assert "--quantize int8" in run("serve", tiny("llama"), "--quantization", "awq", code=2).stderr


# --- batches ------------------------------------------------------------------------------------------------------


def write_batch(path: Path, number: int, smollm2: Path) -> list[reference.Case]:
    """Requests with known answers, and some that are wrong."""
    cases = reference.cases(smollm2)[:number]
    lines: list[Any] = []
    for index, case in enumerate(cases):
        body = {"prompt": case.prompt, "max_tokens": case.max_new_tokens, "temperature": 0, "return_token_ids": True}
        lines.append({"custom_id": f"case-{index}", "method": "POST", "url": "/v1/completions", "body": body})
    lines.insert(3, {"custom_id": "hot", "url": "/v1/completions", "body": {"prompt": "a", "temperature": -1}})
    lines.insert(5, {"custom_id": "elsewhere", "url": "/v1/files", "body": {}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")
    return cases


def answers_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_answers(path: Path, cases: list[reference.Case]) -> None:
    """Every request has one answer, which is the right one."""
    answers = answers_of(path)
    by_id = {answer["custom_id"]: answer for answer in answers}
    assert len(answers) == len(by_id) == len(cases) + 3
    for index, case in enumerate(cases):
        answer = by_id[f"case-{index}"]
        assert answer["error"] is None and answer["response"]["status_code"] == 200
        assert tuple(answer["response"]["body"]["choices"][0]["token_ids"]) == case.token_ids
    assert by_id["hot"]["response"]["status_code"] == 400 and "temperature" in by_id["hot"]["error"]["message"]
    assert "url" in by_id["elsewhere"]["error"]["message"] and by_id["elsewhere"]["response"] is None
    assert by_id[None]["error"]["line"] == len(cases) + 3


def test_a_batch_is_answered_by_a_server_and_by_a_model(smollm2: Path, smollm2_server: Server, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    cases = write_batch(source, 20, smollm2)
    said = run("run-batch", source, "-o", target, "--model", smollm2_server.url, code=1).stderr
    assert "3 of them errors" in said
    check_answers(target, cases)
    # All is done, and a second run does nothing.
    before = target.read_text()
    assert (
        f"{len(cases) + 3} of them answered before" in run("run-batch", source, "-o", target, "--model", "/none").stderr
    )
    assert target.read_text() == before
    target.unlink()
    run("run-batch", source, "-o", target, "--model", smollm2, "--dtype", "float32", "--no-progress", code=1)
    check_answers(target, cases)


def test_a_batch_that_is_killed_goes_on_where_it_stopped(smollm2: Path, smollm2_server: Server, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    cases = write_batch(source, 40, smollm2)
    command = [str(GRIDWORK), "run-batch", str(source), "-o", str(target), "--model", smollm2_server.url]
    kills = 0
    for more in (1, 10, 20):
        running = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
        known = target.read_text().count("\n") if target.exists() else 0

        def goes_on(running: subprocess.Popen[bytes] = running, wanted: int = known + more) -> bool:
            # A line may be half written.
            count = target.read_text().count("\n") if target.exists() else 0
            return count >= wanted or running.poll() is not None

        wait_for(goes_on, PATIENCE_S, "answers are written", every_s=0.002)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            kills += 1
        running.wait()
        time.sleep(0.05)
        # As after a crash of the machine.
        with target.open("a") as file:
            file.write('{"custom_id": "case-0", "respo')
    assert kills > 0
    # Its status is 1 only if a wrong line was left for this run.
    last = subprocess.run(command, env=environment(), stderr=subprocess.DEVNULL, check=False)
    assert last.returncode in (0, 1)
    check_answers(target, cases)


def test_wrong_batches_are_refused(tmp_path: Path) -> None:
    assert "no file" in run("run-batch", tmp_path / "none", "-o", tmp_path / "out", "--model", "m", code=1).stderr
    source, notes = tmp_path / "in.jsonl", tmp_path / "notes"
    source.write_text('{"custom_id": "a"}\n{"custom_id": "a"}\n')
    assert "twice" in run("run-batch", source, "-o", tmp_path / "out", "--model", "m", code=1).stderr
    notes.write_text("my notes\n")
    assert "another file" in run("run-batch", source, "-o", notes, "--model", "m", code=1).stderr
    assert notes.read_text() == "my notes\n"
