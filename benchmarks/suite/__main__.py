"""Measures Gridwork and the peers installed beside it, in turns on this machine, and writes tables and plots.

    make bench                                                     Gridwork alone
    make bench PEERS="vllm transformers-serve generate"            with the peers
    make bench WORKLOADS="start chat" MODELS=smollm2-135m ROUNDS=1 CLIENTS="1 32"
    make bench-report                                              tables and plots again, from the raw results

Each round starts one server after another, runs all workloads on it, and stops it. Raw samples go to benchmarks/data,
one file for each machine; tables and plots are made from it. Nothing else should run on the machine.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from suite import report, results
from suite.contestants import PEERS
from suite.measure import Run
from suite.plan import Plan, UnknownName, choose


def measure(plan: Plan, data: Path) -> None:
    """Measures the plan and writes the samples to `data`."""
    print(f"this will take about {minutes(plan.estimate_s())}, by a rough guess for 2 cores", file=sys.stderr)
    started = time.perf_counter()
    for done, model in enumerate(plan.models):
        run = Run(plan, model, data)
        model_started = time.perf_counter()
        for index in range(plan.rounds):
            run.round(index)
            round_s = (time.perf_counter() - model_started) / (index + 1)
            left = f"about {minutes(round_s * (plan.rounds - index - 1))} left for {model.name}"
            print(left if done == len(plan.models) - 1 else f"{left}, then the next model", file=sys.stderr, flush=True)
    print(f"measured for {minutes(time.perf_counter() - started)}", file=sys.stderr)


def minutes(seconds: float) -> str:
    """A duration for people to read."""
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("measure", help="measure, and write raw results to benchmarks/data")
    run.add_argument("--peers", default="", help=f"any of {', '.join(PEERS)}; default: none")
    run.add_argument("--workloads", default="", help="names; default: all")
    run.add_argument("--models", default="", help="names; default: all")
    run.add_argument("--rounds", default="", help="default: 3")
    run.add_argument("--clients", default="", help="numbers of clients, in place of each workload's own")
    run.add_argument("--estimate", action="store_true", help="only print the estimated time")
    commands.add_parser("report", help="write results.md from raw results, of all machines by default")
    for command in commands.choices.values():
        results.add_place_options(command)
    args = parser.parse_args()
    if args.command == "report":
        for place in results.places(args):
            report.write(place)
        return
    try:
        plan = choose(args.peers, args.workloads, args.models, args.rounds, args.clients)
    except UnknownName as error:
        sys.exit(str(error))
    if args.estimate:
        print(f"about {minutes(plan.estimate_s())}, by a rough guess for 2 cores")
        return
    # SIGTERM must end the servers, too: as an exception it passes through their `with` blocks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    measure(plan, results.place(args).data)


if __name__ == "__main__":
    main()
