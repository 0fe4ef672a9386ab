"""Cost of grammars: time per output token of constrained answers over that of free ones, and time to the first token
with a schema that the server has not seen.

    .venv/bin/python benchmarks/tools/structured_output.py --model-id .cache/models/SmolLM2-135M-Instruct
    .venv/bin/python benchmarks/tools/structured_output.py --url http://127.0.0.1:3000

Starts the server unless `--url` names one. Rounds of free and of constrained requests alternate; each figure is the
median over the rounds, and a ratio below 1 means that constrained answers are faster. Prints a Markdown table. Nothing
else should run on the machine.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from suite.paths import ROOT
from suite.servers import Contestant, running

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "red", "green"]}, "maxItems": 4},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
LONG_LIST = {"type": "array", "items": PERSON, "minItems": 200}
"""A schema whose answers do not end within the tokens of a request."""


@dataclass(frozen=True)
class Timing:
    """Times of one answer."""

    first_s: float
    per_token_s: float


async def ask(session: aiohttp.ClientSession, url: str, tokens: int, fields: dict[str, Any]) -> Timing:
    """Streams one answer of `tokens` tokens."""
    body = {
        "messages": [{"role": "user", "content": "List some people with their age."}],
        "max_tokens": tokens,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        **fields,
    }
    started = time.perf_counter()
    first = last = started
    count = 0
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status} {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                count = event["usage"]["completion_tokens"]
            if event.get("choices"):
                last = time.perf_counter()
                first = last if first == started else first
    return Timing(first - started, (last - first) / max(1, count - 1))


async def together(url: str, tokens: int, all_fields: list[dict[str, Any]]) -> list[Timing]:
    """Streams one answer for each of the requests' further fields, at the same time."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:
        return await asyncio.gather(*(ask(session, url, tokens, fields) for fields in all_fields))


def per_token_ms(timings: list[Timing]) -> float:
    return 1000 * statistics.median(timing.per_token_s for timing in timings)


def first_ms(timings: list[Timing]) -> float:
    return 1000 * statistics.median(timing.first_s for timing in timings)


def new_schema(number: int) -> dict[str, Any]:
    """A schema that no other number gives."""
    properties = {f"{name}_{number}": schema for name, schema in PERSON["properties"].items()}  # type: ignore[attr-defined]
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "array", "items": schema, "minItems": 100}


def measure(url: str, tokens: int, rounds: int) -> list[tuple[str, float, float]]:
    """Rows: name, free, constrained; in ms."""
    free: dict[str, Any] = {}
    constrained = {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": LONG_LIST}}}

    def run(all_fields: list[dict[str, Any]]) -> list[Timing]:
        return asyncio.run(together(url, tokens, all_fields))

    run([free, constrained])
    rows = []
    for clients in (1, 32):
        times: dict[str, list[float]] = {"free": [], "constrained": []}
        for _ in range(rounds):
            times["free"].append(per_token_ms(run([free] * clients)))
            times["constrained"].append(per_token_ms(run([constrained] * clients)))
        free_ms, constrained_ms = (statistics.median(times[kind]) for kind in ("free", "constrained"))
        rows.append((f"time per output token, {clients} clients", free_ms, constrained_ms))
    beside: dict[str, list[float]] = {"free": [], "constrained": []}
    for _ in range(rounds):
        beside["free"].append(per_token_ms(run([free] * 64)))
        beside["constrained"].append(per_token_ms(run([free, constrained] * 32)[::2]))
    rows.append(
        (
            "time per output token of 32 free clients, beside 32 free or constrained ones",
            statistics.median(beside["free"]),
            statistics.median(beside["constrained"]),
        )
    )
    first: dict[str, list[float]] = {"free": [], "constrained": []}
    salt = int(time.time())
    for number in range(8 * rounds):
        first["free"].append(first_ms(asyncio.run(together(url, 2, [free]))))
        schema = {"guided_json": new_schema(salt + number)}
        first["constrained"].append(first_ms(asyncio.run(together(url, 2, [schema]))))
    rows.append(
        ("time to first token, a new schema", statistics.median(first["free"]), statistics.median(first["constrained"]))
    )
    return rows


@contextmanager
def server(url: str | None, model: str, more: list[str]) -> Iterator[str]:
    """The URL of the server to measure."""
    if url is not None:
        yield url.rstrip("/")
        return
    command = [str(ROOT / "target" / "release" / "gridwork"), "--model-id", model, "--max-concurrent-requests", "256"]
    with running(Contestant("gridwork", [*command, *more], model)) as started:
        yield started.url


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-id", default=str(ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"))
    parser.add_argument("--url", help="server to measure, instead of starting one")
    parser.add_argument("--tokens", type=int, default=64, help="number of tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds of each measurement")
    arguments, more = parser.parse_known_args()
    with server(arguments.url, arguments.model_id, more) as url:
        rows = measure(url, arguments.tokens, arguments.rounds)
    print("| | free, ms | constrained, ms | ratio |\n|---|---|---|---|")
    for name, free, constrained in rows:
        print(f"| {name} | {free:.2f} | {constrained:.2f} | {constrained / free:.3f} |")


if __name__ == "__main__":
    main()
