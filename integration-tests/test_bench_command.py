"""`gridwork bench` on real servers."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.paths import GRIDWORK, ROOT
from support.server import Server, child_environment, free_port, wait_for

PATIENCE_S = 240.0


def environment() -> dict[str, str]:
    search = os.pathsep.join(str(ROOT / each) for each in ("python", "server", "kernels"))
    return child_environment({"PYTHONPATH": search})


def run(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(GRIDWORK), "bench", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE_S, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def measured(*words: str | Path, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*words, "--json", "-", code=code).stdout)
    return found


def test_synthetic_prompts_have_exact_lengths_and_share_their_prefix_alone(smollm2_server: Server) -> None:
    words = (smollm2_server.url, "--num-requests", "12", "--concurrency", "4", "--output-tokens", "4")
    figures = measured(*words, "--input-tokens", "96")["figures"]
    assert (figures["num_requests"], figures["num_failed"], figures["output_count"]) == (12, 0, "usage")
    assert (figures["prompt_tokens"], figures["output_tokens"], figures["cached_tokens"]) == (12 * 96, 48, 0)
    # The warm-up has computed the prefix.
    shared = measured(*words, "--input-tokens", "96", "--shared-prefix-tokens", "64", "--warmup", "1")["figures"]
    assert shared["prompt_tokens"] == 12 * 96 and 12 * 48 <= shared["cached_tokens"] <= 12 * 65


def test_conversations_of_a_file_are_sent_at_a_rate(smollm2_server: Server, tmp_path: Path) -> None:
    path, sent = tmp_path / "chats.jsonl", 'gridwork_requests_total{route="chat_completions"}'
    before = smollm2_server.client.metrics().get(sent, 0)
    question = {"role": "user", "content": "What is the capital of France?"}
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Bye"}]
    path.write_text(json.dumps({"messages": [question]}) + "\n" + json.dumps({"conversations": shared}) + "\n")
    words = ("--rate", "20", "--num-requests", "10", "--output-tokens", "8", "--slo", "ttft=100000")
    done = run(smollm2_server.url, "--prompts", path, *words, "--json", tmp_path / "out.json")
    assert "goodput" in done.stdout and "10 or 100%" in done.stdout and "\x1b" not in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["setting"]["api"] == "chat" and found["figures"]["num_failed"] == 0
    assert found["figures"]["prompt_tokens"] > 10 * 8
    # A first request, and the load.
    assert smollm2_server.client.metrics()[sent] == before + 11


def test_a_model_is_served_with_flags_and_takes_hundreds_of_streams(tiny: Callable[[str], Path]) -> None:
    words = ("--concurrency", "400", "--num-requests", "800", "--input-tokens", "16", "--output-tokens", "2:6")
    found = measured(tiny("llama"), "--dtype", "float32", *words, "--max-total-tokens", "256")
    figures = found["figures"]
    assert (figures["num_requests"], figures["num_failed"]) == (800, 0)
    assert 2 * 800 < figures["output_tokens"] < 6 * 800
    assert figures["ttft_ms"]["p50"] <= figures["ttft_ms"]["p99"] <= figures["e2e_ms"]["p99"]


def test_a_limit_of_the_server_that_is_typed_holds(tiny: Callable[[str], Path]) -> None:
    words = ("--concurrency", "60", "--num-requests", "120", "--input-tokens", "16", "--output-tokens", "64")
    found = measured(tiny("llama"), "--dtype", "float32", *words, "--max-concurrent-requests", "2", code=1)
    assert found["figures"]["num_requests"] == 120
    assert all(kind.startswith("status 429") for kind in found["figures"]["errors"])


def test_refusals_are_errors_of_their_kind(smollm2_server: Server) -> None:
    words = ("--num-requests", "3", "--input-tokens", "64", "--output-tokens", "100000", "--no-ignore-eos")
    figures = measured(smollm2_server.url, *words, code=1)["figures"]
    assert figures["num_failed"] == 3 and list(figures["errors"].values()) == [3]
    assert next(iter(figures["errors"])).startswith("status 400: ")


def test_ctrl_c_frees_the_requests_and_prints_the_figures_so_far(smollm2_server: Server, tmp_path: Path) -> None:
    def num_running() -> float:
        return smollm2_server.client.metric("gridwork_running_sequences")

    path = tmp_path / "out.json"
    command = [str(GRIDWORK), "bench", smollm2_server.url, "--concurrency", "3", "--output-tokens", "5000"]
    running = subprocess.Popen([*command, "--json", str(path)], env=environment(), stdout=subprocess.DEVNULL)
    wait_for(lambda: num_running() == 3, PATIENCE_S, "three requests are computed")
    running.send_signal(signal.SIGINT)
    assert running.wait(PATIENCE_S) == 130
    wait_for(lambda: num_running() == 0, PATIENCE_S, "the requests are freed")
    found = json.loads(path.read_text())
    assert found["figures"]["errors"] == {"interrupted": 3} and "the load was interrupted" in found["notes"]


def test_nothing_is_sent_where_something_is_wrong(smollm2: Path, smollm2_server: Server) -> None:
    assert "no server answers" in run(f"http://127.0.0.1:{free_port()}", code=1).stderr
    assert "--dtype" in run(smollm2_server.url, "--dtype", "float32", code=1).stderr
    assert "--dtype" in run(smollm2, "--dtype", "int3", code=1).stderr
    assert "--rate" in run(smollm2, "--rate", "1", "--concurrency", "4", code=1).stderr
    assert "--num-requests" in run(smollm2, "--num-requests", "many", code=2).stderr
