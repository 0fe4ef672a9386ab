"""`gridwork check MODEL`: does it load, on which path, in how much memory, and does it answer as Transformers does."""

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gridwork.engine import Engine
from gridwork.outputs import RequestOutput
from gridwork.prompts import Prompt
from gridwork.sampling import SamplingParams

_PROMPTS = ("The capital of France is", "def add(a, b):", "Once upon a time", "1, 2, 3, 4,")
_NUM_TOKENS = 16
_MIN_AGREEING = 8
"""Tokens after which another one counts as rounding, where two are nearly as likely."""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "check",
        help="try a model: path, memory, and answers against Transformers' own",
        description="Loads the model as the server would, with any of its flags, and says what was found.",
    )
    parser.add_argument("model", help="folder, .gguf file, or name on the hub")
    parser.add_argument("--no-generate", action="store_true", help="do not compare with Transformers' generate()")
    parser.set_defaults(run=run, takes_flags=True)


def run(args: argparse.Namespace) -> int:
    """0: it serves, and its answers are right. 1: its answers differ. Raises GridworkError for one that cannot load."""
    is_generator, agrees = asyncio.run(_check(args.model, args.flags, not args.no_generate))
    if args.no_generate or not is_generator:
        return 0
    return 0 if agrees else 1


async def _check(model: str, flags: list[str], compares: bool) -> tuple[bool, bool]:
    engine = Engine(model, {}, flags)
    try:
        info = await engine.info()
        describe(info)
        is_generator = "max_total_tokens" in info
        if not (compares and is_generator):
            return is_generator, True
        params = SamplingParams(temperature=0, max_tokens=_NUM_TOKENS)
        outputs = await asyncio.gather(*(engine.complete(Prompt(text, None), params) for text in _PROMPTS))
        folder = engine.model_path or model
    finally:
        await engine.close_client()
        await asyncio.to_thread(engine.close_server)
    return is_generator, compare(outputs, folder, info["model_dtype"])


def describe(info: dict[str, Any]) -> None:
    """Prints what the server says of the model."""
    rows = [
        ("model", f"{info['model_id']} ({info['model_type']}, {info['num_parameters']:,} parameters)"),
        ("task", info.get("task", "generate")),
        ("runs", f"on the {info['model_impl']} path, {info['model_dtype']}, on {info['model_device_type']}"),
        ("not faster", info["model_impl_reason"] or "it is the fastest path"),
        ("attention", info["attention"]),
        ("weights", _size(info["weight_bytes"])),
    ]
    if info.get("cache_capacity_tokens"):
        of_token = info["cache_bytes"] / info["cache_capacity_tokens"]
        capacity = info["cache_capacity_tokens"]
        rows.append(("cache", f"{_size(info['cache_bytes'])} for {capacity:,} tokens, {_size(of_token)} a token"))
        rows.append(("longest", f"{info['max_total_tokens']:,} tokens of prompt and answer"))
    rows.append(("memory", f"{_size(_available_bytes())} of this machine are available beside the server"))
    if info.get("invariance_reason"):
        rows.append(("rounding", info["invariance_reason"]))
    for name, text in rows:
        print(f"{name + ':':<12} {text}")


def compare(outputs: list[RequestOutput], folder: str, dtype: str) -> bool:
    """Prints whether the tokens equal those of `generate()`, which runs in a process of its own."""
    question = {
        "folder": folder,
        "dtype": dtype,
        "prompts": [output.prompt_token_ids for output in outputs],
        "num_tokens": _NUM_TOKENS,
    }
    command = [sys.executable, "-m", "gridwork.tools.generate"]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        print(f"{'generate():':<12} cannot be run by itself: {last[0]}")
        return False
    agrees = True
    for output, expected in zip(outputs, json.loads(done.stdout.splitlines()[-1]), strict=True):
        got = output.outputs[0].token_ids
        same = next(
            (at for at, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), len(expected)
        )
        is_equal = got == expected
        agrees = agrees and (is_equal or (dtype != "float32" and same >= _MIN_AGREEING))
        verdict = "equal tokens" if is_equal else f"other tokens after the first {same}"
        print(f"{'generate():':<12} {verdict} for {output.prompt!r}")
    return agrees


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
