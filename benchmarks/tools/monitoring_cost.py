"""The cost of monitoring to a busy server: tokens per second with it over those without.

    cd benchmarks && ../.venv/bin/python -m tools.monitoring_cost

Serves the default model to 32 clients: plainly; with traces and metrics for a collector that never answers; while
`/metrics` is read every 100 ms; and with a line for each request to a log on a full disk. They take turns, and the
plain server comes before and after each round, so that the noise of the machine shows. Prints a Markdown table of
medians of ratios. Nothing else should run on the machine.
"""

import argparse
import socket
import statistics
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from suite.load import Turn, run_load
from suite.paths import ROOT
from suite.prompts import chat_prompts
from suite.servers import Contestant, running

CLIENTS = 32
CASES = ("plain", "collector that hangs", "a scrape every 100 ms", "log on a full disk", "plain again")


@contextmanager
def silent_collector() -> Iterator[str]:
    """The URL of a port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def scraping(url: str) -> Iterator[None]:
    """Reads the metrics every 100 ms."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(0.1):
            with urllib.request.urlopen(f"{url}/metrics", timeout=30) as page:
                page.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(case: str, gridwork: Path, model: Path, requests: int) -> float:
    """Tokens per second. Every request must be answered."""
    command = [str(gridwork), "--model-id", str(model), "--hostname", "127.0.0.1"]
    turns = [(Turn(text[:400], 64),) for text in chat_prompts(requests, seed=1)]
    with silent_collector() as collector:
        if case == "collector that hangs":
            command += ["--otlp-endpoint", collector]
        if case == "log on a full disk":
            command = ["sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh", *command, "--log-requests"]
        with running(Contestant("gridwork", command, str(model))) as server:
            run_load(server.url, str(model), turns[:CLIENTS], clients=CLIENTS)  # warm-up
            with scraping(server.url) if case == "a scrape every 100 ms" else nullcontext():
                return run_load(server.url, str(model), turns, clients=CLIENTS).tokens_per_s


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gridwork", type=Path, default=ROOT / "target/release/gridwork")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=128)
    args = parser.parse_args()
    rounds = []
    for index in range(args.rounds):
        print(f"round {index + 1} of {args.rounds}", file=sys.stderr, flush=True)
        speeds = [measure(case, args.gridwork.resolve(), args.model.resolve(), args.requests) for case in CASES]
        print("  ".join(f"{speed:.0f}" for speed in speeds), file=sys.stderr, flush=True)
        rounds.append(speeds)
    print("| | tok/s | ratio to plain |\n|---|---|---|")
    for number, case in enumerate(CASES):
        speed = statistics.median(speeds[number] for speeds in rounds)
        ratio = statistics.median(2 * speeds[number] / (speeds[0] + speeds[-1]) for speeds in rounds)
        print(f"| {case} | {speed:.0f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
