"""`gridwork bench URL|MODEL`: load on a server, and what it measures."""

import argparse
import asyncio
import itertools
import math
import os
import random
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridwork.bench import arrivals, live, measure, probe, prompts, report
from gridwork.bench.load import Load, Request, Target
from gridwork.bench.prompts import Lengths, Prompt
from gridwork.errors import GridworkError, InvalidRequest
from gridwork.tools.serving import Serving, find_model, opened_server, read_target

_CONCURRENCY = 16
_NUM_REQUESTS = 200
_LENGTH = "128"
_MIN_CONCURRENT_OF_SERVER = 1024
"""Requests that a server of this command takes at once, so that it refuses none of a load."""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "bench",
        help="put load on a server, and measure it",
        description="Puts load on a server of OpenAI's API, and prints latencies and throughput. Given a model, it "
        "starts a server of its own, with any of the server's flags.",
    )
    add = parser.add_argument
    add("target", metavar="URL|MODEL", help="server that runs already; or folder, .gguf file, or name on the hub")
    add("--concurrency", type=int, metavar="N", help=f"requests in flight at any time; default {_CONCURRENCY}")
    add("--rate", type=float, metavar="R", help="requests a second, at random times, without waiting for answers")
    add("--num-requests", type=int, metavar="N", help=f"requests to send; default {_NUM_REQUESTS} without --duration")
    add("--duration", type=float, metavar="SECONDS", help="send no more requests after this time")
    add("--warmup", type=int, default=0, metavar="N", help="requests before these, which are not counted; default 0")
    add("--prompts", type=Path, metavar="FILE", help="prompts, a line each; .jsonl, .json: OpenAI or ShareGPT messages")
    add("--input-tokens", metavar="N|LOW:HIGH", help=f"tokens of synthetic prompts; default {_LENGTH}")
    add(
        "--shared-prefix-tokens", type=int, metavar="N", help="tokens with which all synthetic prompts begin; default 0"
    )
    add("--output-tokens", metavar="N|LOW:HIGH", help=f"maximum number of tokens of an answer; default {_LENGTH}")
    add(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        help="go on to the maximum number of tokens; default for synthetic prompts, where the server can do it",
    )
    add("--api", choices=("chat", "completions"), help="default completions; chat for a file of conversations")
    add("--model", metavar="NAME", help="model's name in requests; default the first that the server lists")
    add("--api-key", metavar="KEY", help="key of the server")
    add("--slo", metavar="LIMITS", help='limits in ms that a good answer keeps: "ttft=200 tpot=50 e2e=3000"')
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="maximum time of a request; default 600")
    add("--seed", type=int, metavar="N", help="seed of prompts and arrivals; default a new one, which is printed")
    add("--json", metavar="OUT", help="file for all figures; - for stdout")
    parser.set_defaults(run=run, takes_flags=True)


@dataclass(frozen=True)
class Plan:
    """The load, as the flags describe it."""

    target: str
    concurrency: int | None
    """None: requests follow `rate`."""
    rate: float
    num_requests: int | None
    duration_s: float | None
    warmup: int
    prompts: list[Prompt] | None
    """Prompts of a file; None: synthetic ones."""
    input_tokens: Lengths
    shared_prefix_tokens: int
    output_tokens: Lengths
    ignores_eos: bool
    api: str
    slo: measure.Slo | None
    timeout_s: float
    seed: int

    def setting(self) -> dict[str, Any]:
        """Conditions of the figures, for JSON."""
        return {
            "target": self.target,
            "concurrency": self.concurrency,
            "rate_per_s": None if self.concurrency else self.rate,
            "num_requests": self.num_requests,
            "duration_s": self.duration_s,
            "warmup": self.warmup,
            "num_prompts_of_file": len(self.prompts) if self.prompts is not None else None,
            "input_tokens": None if self.prompts is not None else [self.input_tokens.low, self.input_tokens.high],
            "shared_prefix_tokens": self.shared_prefix_tokens,
            "output_tokens": [self.output_tokens.low, self.output_tokens.high],
            "api": self.api,
            "slo": vars(self.slo) if self.slo else None,
            "timeout_s": self.timeout_s,
            "seed": self.seed,
        }


def read_plan(args: argparse.Namespace) -> Plan:
    """Checks all flags. Raises InvalidRequest, which names the one that is wrong."""
    for flag, value, lowest in (
        ("concurrency", args.concurrency, 1),
        ("num-requests", args.num_requests, 1),
        ("warmup", args.warmup, 0),
        ("shared-prefix-tokens", args.shared_prefix_tokens, 0),
    ):
        if value is not None and value < lowest:
            raise InvalidRequest(f"--{flag} is {value}; give a whole number from {lowest}")
    for flag, value in (("rate", args.rate), ("duration", args.duration), ("timeout", args.timeout)):
        if value is not None and not 0 < value < math.inf:
            raise InvalidRequest(f"--{flag} is {value:g}; give a number above 0")
    if args.rate is not None and args.concurrency is not None:
        raise InvalidRequest(
            "--rate and --concurrency exclude each other: with a rate, requests wait for no answer; give one"
        )
    if args.prompts is not None:
        for flag in ("input_tokens", "shared_prefix_tokens"):
            if getattr(args, flag) is not None:
                raise InvalidRequest(f"--{flag.replace('_', '-')} is for synthetic prompts, and not for --prompts FILE")
    input_tokens = _lengths("input-tokens", args.input_tokens)
    shared = args.shared_prefix_tokens or 0
    if shared >= input_tokens.low:
        raise InvalidRequest(
            f"--shared-prefix-tokens is {shared}, and --input-tokens {input_tokens.low}; a prompt needs some of its own"
        )
    slo = measure.Slo.read(args.slo) if args.slo is not None else None
    given = prompts.of_file(args.prompts) if args.prompts is not None else None
    has_end = args.num_requests is not None or args.duration is not None
    return Plan(
        target=read_target(args.target, args.flags),
        concurrency=None if args.rate is not None else args.concurrency or _CONCURRENCY,
        rate=args.rate or 0.0,
        num_requests=args.num_requests if has_end else len(given) if given is not None else _NUM_REQUESTS,
        duration_s=args.duration,
        warmup=args.warmup,
        prompts=given,
        input_tokens=input_tokens,
        shared_prefix_tokens=shared,
        output_tokens=_lengths("output-tokens", args.output_tokens),
        ignores_eos=args.ignore_eos if args.ignore_eos is not None else given is None,
        api=args.api or ("chat" if given and any(prompt.messages for prompt in given) else "completions"),
        slo=slo,
        timeout_s=args.timeout,
        seed=args.seed if args.seed is not None else secrets.randbelow(1 << 31),
    )


def _lengths(flag: str, text: str | None) -> Lengths:
    try:
        return Lengths.read(text if text is not None else _LENGTH)
    except ValueError:
        raise InvalidRequest(
            f'--{flag} is "{text}"; give a number of tokens from 1, or two as LOW:HIGH to draw from'
        ) from None


def check_output(text: str | None) -> None:
    """Raises InvalidRequest for a file that cannot be written."""
    if text is None or text == "-":
        return
    path = Path(text)
    if path.is_dir():
        raise InvalidRequest(f"--json: {path} is a folder; give a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidRequest(f"--json: {path} cannot be written; give a file in a folder that is there and can be")


def run(args: argparse.Namespace) -> int:
    """0: every request has an answer. 1: some failed."""
    plan = read_plan(args)
    check_output(args.json)
    options = {"max_concurrent_requests": max(_MIN_CONCURRENT_OF_SERVER, 2 * (plan.concurrency or 0))}
    with opened_server(plan.target, args.flags, args.api_key, options) as serving:
        return asyncio.run(_run(plan, serving, args.model, args.json))


async def _run(plan: Plan, serving: Serving, model: str | None, output: str | None) -> int:
    extra = {"ignore_eos": True} if plan.ignores_eos else {}
    target = Target(serving.address, await find_model(serving, model), plan.api, extra)
    target, refused = await probe.accepted(target)
    notes = [refused] if refused else []
    scale = prompts.Scale()
    if plan.prompts is None:
        measured = await probe.measured_scale(target)
        scale = measured or scale
        if measured is None:
            notes.append("the server counts no prompt tokens: a synthetic prompt has a word for each of --input-tokens")
    requests = _requests(plan, scale)
    if plan.warmup:
        warmup = Load(target, plan.timeout_s)
        await warmup.closed(itertools.islice(requests, plan.warmup), min(plan.warmup, plan.concurrency or 16), None)
    load, is_whole = Load(target, plan.timeout_s), True
    try:
        await _drive(plan, load, itertools.islice(requests, plan.num_requests))
    except asyncio.CancelledError:
        # Ctrl-C: the figures so far are still of use.
        is_whole = False
        notes.append("the load was interrupted")
    if (death := serving.death()) is not None:
        raise death
    _tell(plan, target, load, notes, output)
    failed = any(result.error is not None for result in load.results)
    return 130 if not is_whole else 1 if failed else 0


def _requests(plan: Plan, scale: prompts.Scale) -> Iterator[Request]:
    """Requests without end."""
    chance = random.Random(f"lengths {plan.seed}")
    if plan.prompts is not None:
        source: Iterator[Prompt] = prompts.repeated(plan.prompts, plan.seed)
    else:
        source = prompts.synthetic(plan.input_tokens, plan.shared_prefix_tokens, scale, plan.seed)
    return (Request(prompt, plan.output_tokens.draw(chance)) for prompt in source)


async def _drive(plan: Plan, load: Load, requests: Iterator[Request]) -> None:
    async with live.shown(load, plan.num_requests, plan.duration_s):
        if plan.concurrency is not None:
            await load.closed(requests, plan.concurrency, plan.duration_s)
        else:
            await load.open(requests, arrivals.poisson(plan.rate, plan.seed), plan.duration_s)


def _tell(plan: Plan, target: Target, load: Load, notes: list[str], output: str | None) -> None:
    """Prints the summary, and writes the figures."""
    results = sorted(load.results, key=lambda result: result.sent_s)
    found = measure.figures(results, load.last_end_s, plan.slo)
    lag_ms = measure.Spread.of(1e3 * lag_s for lag_s in load.lags_s)
    how = f"concurrency {plan.concurrency}" if plan.concurrency else f"{plan.rate:g} requests/s"
    shown = f"{plan.target}: {target.model}, {plan.api}, {how}, seed {plan.seed}"
    setting = {**plan.setting(), "model": target.model, **target.extra}
    report.console(to_stderr=output == "-").print(report.summary(shown, found, plan.slo, lag_ms, notes))
    if output == "-":
        sys.stdout.write(report.as_json(setting, found, lag_ms, notes))
    elif output is not None:
        try:
            Path(output).write_text(report.as_json(setting, found, lag_ms, notes), encoding="utf-8")
        except OSError as error:
            raise GridworkError(f"--json: {output} cannot be written: {error.strerror}") from None
