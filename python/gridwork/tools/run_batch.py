"""`gridwork run-batch IN.jsonl -o OUT.jsonl`: OpenAI's batch format, resumed where it stopped.

Every line of the output is written whole and at once, and names the request that it answers. A run that is started
again reads them, cuts off a last line that is not whole, and sends what has no line yet.
"""

import argparse
import asyncio
import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gridwork.engine import Engine
from gridwork.errors import InvalidRequest

_WINDOW = 512
"""Maximum number of requests that are read ahead."""
_ROUTES = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"),
    *("/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank", "/embeddings"),
)


@dataclass(frozen=True)
class Line:
    """A line of the input."""

    number: int
    custom_id: str | None
    url: str
    body: dict[str, Any]
    wrong: str | None = None
    """Why it is no request."""

    @property
    def key(self) -> str | int:
        """Key that tells it from others in the output: its id, or its number where it has none."""
        return self.number if self.custom_id is None else self.custom_id


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "run-batch",
        help="answer a file of requests in OpenAI's batch format",
        description="Answers a file of requests in OpenAI's batch format. Started again, it goes on where it stopped.",
    )
    parser.add_argument("input", type=Path, metavar="IN.jsonl", help="a request a line, with custom_id, url and body")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.jsonl", help="an answer a line")
    parser.add_argument(
        "--model", required=True, metavar="MODEL|URL", help="model to serve, with any flag of the server; or a URL"
    )
    parser.add_argument("--api-key", help="key of the server at the URL")
    parser.add_argument("--no-progress", action="store_true", help="show no bar")
    parser.set_defaults(run=run, takes_flags=True)


def run(args: argparse.Namespace) -> int:
    """0: every request has an answer. 1: some were refused or failed, which their lines say."""
    if not args.input.is_file():
        raise InvalidRequest(f"there is no file {args.input}", field="input")
    done = answered(args.output)
    total, todo = counted(args.input, done)
    print(f"{args.input}: {total} requests, {total - todo} of them answered before", file=sys.stderr)
    if todo == 0:
        return 0
    options = {"api_key": args.api_key} if args.api_key else {}
    engine = Engine(args.model, options, args.flags)
    failed = asyncio.run(_run(engine, args.input, args.output, done, todo, not args.no_progress))
    print(f"{args.output}: {todo} new answers, {failed} of them errors", file=sys.stderr)
    return 1 if failed else 0


def lines(path: Path) -> Iterator[Line]:
    """The requests of a file, those that are wrong too. Empty lines are left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield read_line(text, number)


def read_line(text: str, number: int) -> Line:
    """A line; its `wrong` says why it is no request."""
    try:
        entry = json.loads(text)
    except ValueError as error:
        return Line(number, None, "", {}, f"line {number} is not JSON: {error}")
    if not isinstance(entry, dict) or not isinstance(entry.get("custom_id"), str):
        return Line(number, None, "", {}, f"line {number} has no `custom_id` that is a text")
    custom_id, url, body = entry["custom_id"], entry.get("url"), entry.get("body")
    if entry.get("method", "POST") != "POST":
        return Line(number, custom_id, "", {}, f"`method` is POST. Given: {entry['method']!r}")
    if url not in _ROUTES:
        return Line(number, custom_id, "", {}, f"`url` is one of {', '.join(_ROUTES)}. Given: {url!r}")
    if not isinstance(body, dict):
        return Line(number, custom_id, url, {}, "`body` is missing, or is not an object")
    if body.get("stream"):
        return Line(number, custom_id, url, {}, "`stream` is not possible in a batch; remove it")
    return Line(number, custom_id, url, body)


def counted(path: Path, done: set[str | int]) -> tuple[int, int]:
    """Number of requests, and of those that have no answer. Raises InvalidRequest for an id that is there twice."""
    seen: set[str | int] = set()
    for line in lines(path):
        if line.key in seen:
            raise InvalidRequest(f"{path}: line {line.number}: the custom_id {line.key!r} is there twice")
        seen.add(line.key)
    return len(seen), len(seen - done)


def answered(path: Path) -> set[str | int]:
    """The requests that have an answer in the output. Cuts off a last line that is not whole."""
    if not path.exists():
        return set()
    done: set[str | int] = set()
    whole_bytes = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
                key = entry["custom_id"] if entry["custom_id"] is not None else entry["error"]["line"]
            except (ValueError, KeyError, TypeError):
                if not line.endswith(b"\n"):
                    break
                raise InvalidRequest(f"{path}: line {number} is not an answer of a batch; name another file") from None
            if not line.endswith(b"\n"):
                break
            done.add(key)
            whole_bytes += len(line)
    if whole_bytes < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(whole_bytes)
    return done


async def _run(
    engine: Engine, source: Path, target: Path, done: set[str | int], todo: int, shows_progress: bool
) -> int:
    from tqdm import tqdm

    room, failed = asyncio.Semaphore(_WINDOW), 0
    try:
        await engine.info()
        with target.open("ab", buffering=0) as output, tqdm(total=todo, disable=not shows_progress, unit="req") as bar:

            async def answer(line: Line) -> None:
                nonlocal failed
                try:
                    entry = await _answer(engine, line)
                    failed += entry["error"] is not None
                    _write(output, entry)
                    bar.update()
                finally:
                    room.release()

            async with asyncio.TaskGroup() as group:
                for line in lines(source):
                    if line.key not in done:
                        await room.acquire()
                        group.create_task(answer(line))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await engine.close_client()
        await asyncio.to_thread(engine.close_server)
    return failed


async def _answer(engine: Engine, line: Line) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id}
    if line.wrong is not None:
        error: dict[str, Any] = {"code": "invalid_request", "message": line.wrong}
        if line.custom_id is None:
            error["line"] = line.number
        return entry | {"response": None, "error": error}
    status, body = await engine.send(line.url, line.body)
    response = {"status_code": status, "request_id": body.get("id") if isinstance(body, dict) else None, "body": body}
    error_of = body.get("error") if status != 200 and isinstance(body, dict) else None
    if status == 200:
        return entry | {"response": response, "error": None}
    message = error_of.get("message") if isinstance(error_of, dict) else error_of
    code = error_of.get("code") if isinstance(error_of, dict) else None
    return entry | {
        "response": response,
        "error": {"code": code or str(status), "message": message or f"status {status}"},
    }


def _write(output: IO[bytes], entry: dict[str, Any]) -> None:
    data = memoryview(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
    # A full disk writes a part; the rest of a line must not follow another line.
    written = output.write(data)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes could be written")
