"""Finds, fetches, converts and merges: the local folder of a model that a user names."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from gridwork_server.prepare import adapter, pickle_weights, quantized_weights
from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.source import GgufFile, HubModel, LocalFolder, locate
from gridwork_server.prepare.staging import check_absent, make_folder


@dataclass(frozen=True)
class Options:
    """Permissions for preparing a model, and the folder for its results."""

    revision: str | None = None
    trust_remote_code: bool = False
    code_revision: str | None = None
    allow_pickle: bool = False
    cache_dir: Path | None = None
    """The hub's cache folder; None for the usual one."""


def folder_of(model_id: str, options: Options, is_base: bool = False) -> Path:
    """Local folder of a model, fetched, converted and merged as needed. is_base: an adapter will be merged onto it.
    Raises PrepareError."""
    files = _files(model_id, options)
    if files.is_file():
        from gridwork_server.prepare.gguf import convert_once

        return convert_once(files, made_dir(options))
    if adapter.is_adapter(files):
        if is_base:
            raise PrepareError(f"{files} is an adapter itself; merge that one onto its base first")
        return adapter.merge_adapter(
            files,
            lambda name: _base_folder(name, options),
            options.allow_pickle,
            options.trust_remote_code,
            options.code_revision,
            made_dir(options),
        )
    if pickles := _pickles(files, model_id, options):
        return pickle_weights.convert_pickles(files, pickles, made_dir(options))
    return files


def download(name: str, options: Options) -> Path:
    """Folder with the files of a model on the hub: those that a server fetches, an adapter's base among them. Raises
    PrepareError."""
    if not isinstance(locate(name), HubModel):
        raise PrepareError(f"{name} is on this machine; give a name on the Hugging Face hub (`organisation/name`)")
    folder = _files(name, options)
    if adapter.is_adapter(folder):
        adapter.find_base(folder, lambda base: _files(base, replace(options, revision=None)))
    return folder


def convert(model_id: str, out: Path, options: Options) -> None:
    """Writes a GGUF file, pickled weights or an adapter on its base as a folder of Transformers with safetensors.

    out: a path that is free, or an empty folder. It is complete, or not there. Raises PrepareError.
    """
    check_absent(out)
    files = _files(model_id, options)
    if out.resolve().is_relative_to(files.resolve()):
        raise PrepareError(f"{out} lies in {files}, which is to be converted; name a folder elsewhere")
    if files.is_file():
        from gridwork_server.prepare import gguf

        make_folder(out, lambda partial: gguf.convert(files, partial))
        return
    _check_links(files)
    if adapter.is_adapter(files):
        weights = adapter.find_weights(files, options.allow_pickle)
        base = adapter.find_base(files, lambda name: _base_folder(name, options))
        _check_links(base)
        trusts, revision = options.trust_remote_code, options.code_revision
        make_folder(out, lambda partial: adapter.merge(files, weights, base, partial, trusts, revision))
    elif pickles := _pickles(files, model_id, options):
        make_folder(out, lambda partial: pickle_weights.convert(files, pickles, partial))
    elif not (files / "config.json").is_file():
        ggufs = sorted(file.name for file in files.glob("*.gguf"))
        hint = f"name one of its files, such as {files / ggufs[0]}" if ggufs else "name a model's folder"
        raise PrepareError(f"{files} has no config.json, so it is not a model; {hint}")
    else:
        raise PrepareError(f"{files} has no weights but safetensors: there is nothing to convert; serve it as it is")


def made_dir(options: Options) -> Path:
    """Folder for what is made of models, in the hub's cache."""
    return _cache_dir(options) / "gridwork"


def _files(model_id: str, options: Options) -> Path:
    """A model's files as its author made them: its folder, fetched if needed, or its GGUF file."""
    source = locate(model_id)
    if isinstance(source, LocalFolder | GgufFile):
        return source.path
    from gridwork_server.prepare.hub import fetch_model

    return fetch_model(
        source.name, options.revision, options.trust_remote_code, _cache_dir(options), options.allow_pickle
    )


def _base_folder(name: str, options: Options) -> Path:
    """Folder of an adapter's base. The revision is the adapter's."""
    return folder_of(name, replace(options, revision=None), is_base=True)


def _pickles(folder: Path, model_id: str, options: Options) -> list[Path]:
    """The files of a folder's pickled weights, if these are to be converted and may be."""
    if not (folder / "config.json").is_file() or not (files := pickle_weights.pickle_files(folder)):
        return []
    if not options.allow_pickle:
        raise pickle_weights.refusal(files[0])
    quantized_weights.check_readable(folder, model_id)
    return files


def _check_links(folder: Path) -> None:
    """Raises PrepareError for a link that leads out of a folder, since its copy would hold another's content. Links of
    a snapshot of the hub lead to `blobs`."""
    place = folder.resolve()
    root = place.parents[1] if place.parent.name == "snapshots" else place
    for file in folder.iterdir():
        if not file.resolve().is_relative_to(root):
            raise PrepareError(f"{file} is a link that leads out of the folder; put the file itself there")


def _cache_dir(options: Options) -> Path:
    return options.cache_dir or _hub_cache()


def _hub_cache() -> Path:
    # The hub library interprets an empty variable in a way that nobody wants.
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name) == "":
            del os.environ[name]
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
