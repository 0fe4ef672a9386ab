"""Shared by the commands that prepare a model's folder: their flags, log and errors."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gridwork.errors import ModelError

if TYPE_CHECKING:
    from gridwork_server.prepare.model_folder import Options


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what may be fetched and read; they are those of the server."""
    parser.add_argument("--revision", help="branch, tag or commit on the hub [default: main]")
    parser.add_argument(
        "--huggingface-hub-cache",
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="folder for models of the hub [default: the hub library's own cache]",
    )
    parser.add_argument(
        "--allow-pickle-weights", action="store_true", help="read .bin and .pt files: nothing but tensors"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="allow Python code that the model brings")
    parser.add_argument("--code-revision", help="branch, tag or commit of that code, where it is in another repository")


def options(args: argparse.Namespace) -> "Options":
    """The values of these flags."""
    from gridwork_server.prepare.model_folder import Options

    return Options(
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        code_revision=args.code_revision,
        allow_pickle=args.allow_pickle_weights,
        cache_dir=args.huggingface_hub_cache,
    )


@contextmanager
def preparing() -> Iterator[None]:
    """Shows the log as plain lines. Raises ModelError for what cannot be prepared, and SystemExit at SIGTERM or SIGHUP,
    so that half done work is removed."""
    from gridwork_server import logs
    from gridwork_server.prepare.errors import PrepareError

    logs.set_up("info", plain=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        yield
    except PrepareError as error:
        raise ModelError(logs.escaped(str(error).removeprefix("--model-id "))) from error


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
