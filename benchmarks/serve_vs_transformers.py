"""Gridwork beside `transformers serve` with continuous batching, in turn on the same machine; prints a Markdown table.

    make bench

or, with another model or peer:

    .venv/bin/python benchmarks/serve_vs_transformers.py --peer PATH/TO/transformers --model-id FOLDER --rounds 3

Each round starts one server, waits until it has answered with one token, measures with 1 and with 32 clients, stops it,
and does the same with the other. Medians over the rounds are printed. Nothing else should run on the machine.
"""

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
from load import Load, Request, RequestFailed, run_load
from prompts import NUM_PROMPTS, output_tokens, prompts

ROOT = Path(__file__).resolve().parents[1]

START_TIMEOUT_S = 300


@dataclass(frozen=True)
class Contestant:
    name: str
    command: list[str]  # without the port
    model: str  # what requests name


@dataclass(frozen=True)
class Round:
    ready_s: float
    one: Load
    many: Load


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(contestant: Contestant) -> Iterator[tuple[str, float]]:
    """Starts a server; gives its URL and the seconds from the command to its first token, warm-up included."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*contestant.command, "--port", str(port)], stdout=log, stderr=subprocess.STDOUT, env=env, cwd=ROOT
        )
        try:
            while True:
                try:
                    run_load(url, contestant.model, [Request("Hello", 1)], clients=1)
                    break
                except* (aiohttp.ClientError, RequestFailed, OSError) as errors:
                    if process.poll() is not None or time.perf_counter() - started > START_TIMEOUT_S:
                        log.seek(0)
                        sys.exit(f"{contestant.name} did not start: {errors.exceptions[0]}\n{log.read()[-3000:]}")
                time.sleep(0.05)
            yield url, time.perf_counter() - started
        finally:
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for child in family:
                if child.is_running():
                    child.kill()


def measure(contestant: Contestant, num_prompts: int) -> Round:
    texts = prompts()[:num_prompts]
    requests = [Request(text, output_tokens(index)) for index, text in enumerate(texts)]
    with running(contestant) as (url, ready_s):
        run_load(url, contestant.model, [Request("Count to ten, slowly.", 16)] * 4, clients=4)  # warm
        one = run_load(url, contestant.model, requests[:: max(1, num_prompts // 16)], clients=1)
        many = run_load(url, contestant.model, requests, clients=32)
    return Round(ready_s, one, many)


def row(name: str, rounds: list[Round]) -> str:
    def median(values: Iterator[float]) -> float:
        return statistics.median(values)

    cells = [f"{median(r.ready_s for r in rounds):.1f} s"]
    for loads in ([r.one for r in rounds], [r.many for r in rounds]):
        cells += [
            f"{median(load.tokens_per_s for load in loads):.0f}",
            f"{median(load.ttft_ms for load in loads):.0f} ms",
            f"{median(load.tpot_ms for load in loads):.1f} ms",
        ]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gridwork", type=Path, default=ROOT / "target/release/gridwork")
    parser.add_argument("--peer", type=Path, required=True, help="`transformers` of an environment with its [serving]")
    parser.add_argument("--model-id", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=NUM_PROMPTS, help="how many of the prompts to use")
    parser.add_argument("--write-prompts", type=Path, help="write the prompts as a JSON list, and do nothing else")
    args = parser.parse_args()
    if args.write_prompts:
        args.write_prompts.write_text(json.dumps(prompts(), indent=1))
        return

    model = str(args.model_id.resolve())
    gridwork = [str(args.gridwork.resolve()), "--model-id", model, "--dtype", args.dtype, "--hostname", "127.0.0.1"]
    peer = [str(args.peer.absolute()), "serve", model, "--continuous-batching", "--attn-implementation", "sdpa"]
    peer += ["--dtype", args.dtype, "--cb-num-blocks", "512", "--cb-max-batch-tokens", "2048", "--host", "127.0.0.1"]
    contestants = [Contestant("gridwork", gridwork, model), Contestant("transformers serve", peer, model)]
    results: dict[str, list[Round]] = {contestant.name: [] for contestant in contestants}
    for index in range(args.rounds):
        for contestant in contestants:
            print(f"round {index + 1} of {args.rounds}: {contestant.name}", file=sys.stderr, flush=True)
            results[contestant.name].append(measure(contestant, args.prompts))

    print(f"{platform.machine()}, {psutil.cpu_count(logical=False)} cores ({psutil.cpu_count()} threads), ", end="")
    print(f"{args.dtype}, {args.prompts} prompts, outputs of 8 to 64 tokens, median of {args.rounds} rounds\n")
    print("| server | first token after | 1 client: tok/s | TTFT | TPOT | 32 clients: tok/s | TTFT | TPOT |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rounds in results.items():
        print(row(name, rounds))
    ours, theirs = (results[contestant.name] for contestant in contestants)
    for label, pick in (("1 client", lambda r: r.one), ("32 clients", lambda r: r.many)):
        ratio = statistics.median(
            pick(a).tokens_per_s / pick(b).tokens_per_s for a, b in zip(ours, theirs, strict=True)
        )
        print(f"\nTokens per second at {label}: {ratio:.2f} times those of the peer.", end="")
    print()


if __name__ == "__main__":
    main()
