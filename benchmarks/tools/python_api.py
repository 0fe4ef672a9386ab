"""Lists of prompts through a Python API, without a server in between: Gridwork's `LLM`, vLLM's, and Gridwork over HTTP.

    make bench-python                      Gridwork alone
    make bench-python PEERS=vllm           with vLLM's `LLM` in its own environment

Each round runs one after another, each in a process of its own. `first token` is the time from `import gridwork`
(or `vllm`) to the first token of its first answer. Nothing else should run on the machine.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from suite import contestants
from suite.load import Turn, run_load
from suite.models import MODELS, prepare
from suite.paths import BENCHMARKS, ROOT
from suite.prompts import chat_prompts, output_tokens
from suite.servers import ServerFailed, environment, last_line, running

KV_GIB = 4
HTTP_CLIENTS = (64, 128, 256)
"""Numbers of clients that are tried over HTTP; the best counts."""


@dataclass(frozen=True)
class Figures:
    """Results of one process.

    Attributes:
        first_token_s: seconds from the import to the first token; `None` over HTTP.
        tokens_per_s: tokens of all answers, by the seconds that the whole list took.
    """

    first_token_s: float | None
    tokens_per_s: float


def main() -> None:
    """Measures all of them in turns and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default="", help="`vllm`, or nothing")
    parser.add_argument("--model", default="smollm2-135m", choices=MODELS)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    peers = args.peers.replace(",", " ").split()
    if unknown := [peer for peer in peers if peer != "vllm"]:
        sys.exit(f"PEERS: {unknown[0]!r} has no Python API that is measured here; there is: vllm")
    if args.prompts < 1 or args.rounds < 1:
        sys.exit("--prompts and --rounds are at least 1")
    # SIGTERM must end the server of `over_http` too: as an exception it passes through its `with` block.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    model = prepare(MODELS[args.model])
    requests = [
        Turn(f"{index}. {text}", output_tokens(index))
        for index, text in enumerate(chat_prompts(args.prompts, seed=4200))
    ]
    found: dict[str, list[Figures]] = {}
    for index in range(args.rounds):
        print(f"round {index + 1} of {args.rounds}", file=sys.stderr)
        found.setdefault("LLM", []).append(in_process("gridwork", model, requests))
        _say("LLM", found)
        found.setdefault("HTTP", []).append(over_http(model, requests))
        _say("HTTP", found)
        if "vllm" in peers:
            found.setdefault("vLLM's LLM", []).append(in_process("vllm", model, requests))
            _say("vLLM's LLM", found)
    print(table(found))


def in_process(package: str, model: Path, requests: list[Turn]) -> Figures:
    """Figures of the class `LLM` of `gridwork` or `vllm`. Raises ServerFailed."""
    if package == "gridwork":
        python, env, dtype = str(ROOT / ".venv/bin/python"), {"PATH": _own_path()}, "bfloat16"
        options: dict[str, object] = {"dtype": dtype, "kv_cache_memory": f"{KV_GIB}GiB"}
    else:
        entry = contestants.entry("vllm-native", model, KV_GIB)
        python = str(Path(entry.contestant.command[0]).with_name("python"))
        env, dtype = entry.contestant.env, entry.dtype
        options = {"dtype": dtype, "max_model_len": 2048}
    job = {
        "package": package,
        "model": str(model),
        "options": options,
        "prompts": [request.text for request in requests],
        "max_tokens": [request.max_tokens for request in requests],
    }
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(
            [python, BENCHMARKS / "tools/python_api_process.py"],
            input=json.dumps(job),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(env),
            check=False,
        )
        if done.returncode != 0:
            raise ServerFailed(f"{package} ended with status {done.returncode}: {last_line(log)}")
    # vLLM logs to stdout too, before and after.
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"first_token_s"')]
    answer = json.loads(line)
    wanted = sum(request.max_tokens for request in requests)
    if answer["tokens"] != wanted:
        raise ServerFailed(f"{package} gave {answer['tokens']} tokens, and {wanted} were wanted")
    return Figures(answer["first_token_s"], answer["tokens"] / answer["seconds"])


def over_http(model: Path, requests: list[Turn]) -> Figures:
    """The same requests to a server, at the best number of clients."""
    best = 0.0
    for clients in HTTP_CLIENTS:
        # A new server each time: no prompt is in its cache.
        with running(contestants.entry("gridwork", model, KV_GIB).contestant) as server:
            load = run_load(server.url, str(model), [(request,) for request in requests], clients)
            best = max(best, load.tokens_per_s)
    return Figures(None, best)


def table(found: dict[str, list[Figures]]) -> str:
    """Medians of all rounds, and ratios to `LLM`."""
    own = statistics.median(figures.tokens_per_s for figures in found["LLM"])
    lines = ["| | first token, s | tokens/s | `LLM` is faster by |", "|---|---|---|---|"]
    for name, rounds in found.items():
        tokens_per_s = statistics.median(figures.tokens_per_s for figures in rounds)
        firsts = [figures.first_token_s for figures in rounds if figures.first_token_s is not None]
        first = f"{statistics.median(firsts):.1f}" if firsts else ""
        ratio = "" if name == "LLM" else f"{own / tokens_per_s:.2f}"
        lines.append(f"| {name} | {first} | {tokens_per_s:.0f} | {ratio} |")
    return "\n".join(lines)


def _own_path() -> str:
    return f"{ROOT / 'target/release'}:{ROOT / '.venv/bin'}:{os.environ['PATH']}"


def _say(name: str, found: dict[str, list[Figures]]) -> None:
    last = found[name][-1]
    first = "" if last.first_token_s is None else f", first token after {last.first_token_s:.1f} s"
    print(f"  {name}: {last.tokens_per_s:.0f} tok/s{first}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
