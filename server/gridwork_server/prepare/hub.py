"""Fetches models from the Hugging Face hub into the hub library's own cache."""

import json
import re
import shutil
from contextlib import AbstractContextManager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from loguru import logger

from gridwork_server.checkpoint import quantized_checkpoint
from gridwork_server.prepare import quantized_weights
from gridwork_server.prepare.background import repeated
from gridwork_server.prepare.errors import PrepareError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_WANTED = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken", "*.vocab", "*.bpe", "*.spm")
_WANTED_PICKLES = ("pytorch_model*.bin", "adapter_model.bin")
_WANTED_CODE = ("*.py",)
# Other formats of the same weights that some repositories carry beside Transformers' own.
_UNWANTED = ("*/*.safetensors", "consolidated*.safetensors", "*/*.json", "*/*.txt")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PROGRESS_INTERVAL_S = 3.0


def fetch_model(
    name: str, revision: str | None, trust_remote_code: bool, cache_dir: Path, allow_pickle: bool = False
) -> Path:
    """Folder of a model's snapshot: found in the cache, else fetched into it.

    A revision that is complete in the cache is used without asking the hub for a newer one. A restart then serves the
    same files as before and needs no network. Raises PrepareError.
    """
    revision = revision or "main"
    cached = find_cached(name, revision, trust_remote_code, cache_dir, allow_pickle)
    if cached is not None:
        logger.info(f"using {name} from the cache, commit {cached.name}")
        return cached
    return _fetch(name, revision, trust_remote_code, cache_dir, allow_pickle)


def find_cached(
    name: str, revision: str, trust_remote_code: bool, cache_dir: Path, allow_pickle: bool = False
) -> Path | None:
    """Finds a complete snapshot in the hub's cache; None when there is none.

    The cache names the commit in refs/REVISION, and holds its files in snapshots/COMMIT. They are read directly,
    because importing the hub library takes longer than all of this.
    """
    storage = cache_dir / f"models--{name.replace('/', '--')}"
    try:
        commit = revision if _COMMIT.fullmatch(revision) else (storage / "refs" / revision).read_text().strip()
    except OSError:
        return None
    snapshot = storage / "snapshots" / commit
    if not commit or not _has_config(snapshot) or not _has_weights(snapshot, allow_pickle):
        return None
    # The hub library keeps a list of the repository's files, which shows whether a download was interrupted.
    try:
        listing = json.loads((storage / "trees" / f"{commit}.json").read_text())
        expected = wanted_files(listing["files"], trust_remote_code, allow_pickle)
    except (OSError, ValueError, KeyError, TypeError):
        expected = []
    return snapshot if all((snapshot / file).is_file() for file in expected) else None


def wanted_files(
    files: "list[str] | dict[str, object]", trust_remote_code: bool, allow_pickle: bool = False
) -> list[str]:
    """Selects the needed files of a repository: safetensors (else pickles, if allowed), configs, tokenizer, chat
    template, and code if trusted."""
    patterns = _WANTED + (_WANTED_CODE if trust_remote_code else ())
    if allow_pickle and not any(file.endswith(".safetensors") and "/" not in file for file in files):
        patterns += _WANTED_PICKLES
    return [
        file
        for file in files
        if any(fnmatch(file, pattern) for pattern in patterns)
        and not any(fnmatch(file, pattern) for pattern in _UNWANTED)
    ]


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _has_weights(folder: Path, allow_pickle: bool) -> bool:
    names = ["model.safetensors", "adapter_model.safetensors"]
    if allow_pickle:
        names += ["pytorch_model.bin", "adapter_model.bin"]
    indexes = [f"{name}.index.json" for name in names]
    return any((folder / name).is_file() for name in names) or any(_has_parts(folder, index) for index in indexes)


def _has_parts(folder: Path, index: str) -> bool:
    try:
        parts = set(json.loads((folder / index).read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(parts) and all((folder / part).is_file() for part in parts)


def _fetch(name: str, revision: str, trust_remote_code: bool, cache_dir: Path, allow_pickle: bool) -> Path:
    from huggingface_hub import HfApi, constants, errors, snapshot_download, utils

    if constants.HF_HUB_OFFLINE:
        raise PrepareError(
            f"{name} (revision {revision}) is not in the cache {cache_dir}, and HF_HUB_OFFLINE is set; unset it to "
            "download the model, copy a cache that has it here, or give the path of a local folder"
        )
    utils.disable_progress_bars()
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        wanted = wanted_files(list(siblings), trust_remote_code, allow_pickle)
        _check_wanted(name, list(siblings), wanted)
        sizes = {file: siblings[file].size or 0 for file in wanted}
        _check_space(name, sum(sizes.values()), cache_dir)
        logger.info(f"downloading {name} (commit {info.sha}): {len(wanted)} files, {_megabytes(sum(sizes.values()))}")
        storage = cache_dir / f"models--{name.replace('/', '--')}"
        _check_readable(name, revision, cache_dir, wanted)
        with _logging_progress(storage / "blobs", {_blob_name(siblings[file]): sizes[file] for file in wanted}):
            folder = snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=wanted)
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        _raise_prepare_error(error, name, revision, cache_dir)
    except Exception as error:
        # Without a connection, the error comes from the HTTP client that the hub library happens to use.
        if type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore", "requests", "urllib3")):
            _raise_unreachable(error, name, cache_dir)
        raise
    logger.info(f"downloaded {name}")
    return Path(folder)


def _check_readable(name: str, revision: str, cache_dir: Path, wanted: list[str]) -> None:
    """Fetches the small files that declare a quantization, and checks them before the weights are fetched."""
    from huggingface_hub import snapshot_download

    files = [file for file in wanted if file in quantized_checkpoint.FILES]
    if not files:
        return  # the repository holds only an adapter
    folder = Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=files))
    quantized_weights.check_readable(folder, name)


def _check_wanted(name: str, files: list[str], wanted: list[str]) -> None:
    if "config.json" not in files and "adapter_config.json" not in files:
        gguf = any(file.endswith(".gguf") for file in files)
        hint = "download one of its .gguf files and give its path" if gguf else "use a Transformers model"
        raise PrepareError(f"{name} has no config.json on the hub; {hint}")
    if not any(file.endswith((".safetensors", ".bin")) for file in wanted):
        pickle = next((file for file in files if file.endswith((".bin", ".pt", ".pth"))), None)
        has = (
            f"only as {pickle}, a pickle file, which can run code when loaded and is not read" if pickle else "nowhere"
        )
        raise PrepareError(
            f"{name} has its weights {has}; use a revision or repository with *.safetensors files, or convert it on "
            "a machine you can spare with AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER), and its "
            "tokenizer likewise; or pass --allow-pickle-weights to have nothing but tensors read from it"
        )


def _check_space(name: str, needed_bytes: int, cache_dir: Path) -> None:
    existing = next(path for path in (cache_dir, *cache_dir.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise PrepareError(
            f"{name} needs {_megabytes(needed_bytes)}, but {cache_dir} has only {_megabytes(free_bytes)} free; free "
            "some space, or choose another cache folder with --huggingface-hub-cache"
        )


def _blob_name(sibling: "RepoSibling") -> str:
    """Name of a file's content in the cache's `blobs` folder."""
    return (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or sibling.rfilename


def _logging_progress(blobs: Path, sizes: dict[str, int]) -> AbstractContextManager[None]:
    """Logs every few seconds how many bytes of these blobs (name to size) have arrived."""
    total = sum(sizes.values())

    def arrived(name: str, size: int) -> int:
        if (blobs / name).is_file():
            return size
        partial = [file.stat().st_size for file in blobs.glob(f"{name}*.incomplete")]
        return min(max(partial, default=0), size)

    def log() -> None:
        try:
            now = sum(arrived(name, size) for name, size in sizes.items())
        except OSError:  # a part was renamed between listing it and reading its size
            return
        percent = 100 * now / total if total else 100
        logger.info(f"downloaded {_megabytes(now)} of {_megabytes(total)} ({percent:.0f} %)")

    return repeated(log, _PROGRESS_INTERVAL_S)


def _raise_prepare_error(error: Exception, name: str, revision: str, cache_dir: Path) -> NoReturn:
    """Raises a PrepareError that says what to do about an error of the hub library or the file system."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        raise PrepareError(
            f"{name} is gated: its authors ask you to accept their terms on its page on the hub; do that, then set "
            "HF_TOKEN to an access token of your account"
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise PrepareError(
            f"there is no model {name} on the hub, or it is private; check the name (`organisation/name`); for a "
            "private model set HF_TOKEN to an access token of an account that may read it"
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise PrepareError(
            f"{name} has no revision {revision}; give --revision a branch, tag or commit of it"
        ) from error
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "no"
        hint = "set HF_TOKEN to a valid token" if status == 401 else "try again later"
        raise PrepareError(f"the hub answered {status} for {name}: {_first_line(error)}; {hint}") from error
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)):
        _raise_unreachable(error, name, cache_dir)
    raise PrepareError(
        f"cannot store {name} in {cache_dir}: {_first_line(error)}; make room or set permissions there, or choose "
        "another folder with --huggingface-hub-cache"
    ) from error


def _raise_unreachable(error: Exception, name: str, cache_dir: Path) -> NoReturn:
    raise PrepareError(
        f"{name} is not in the cache {cache_dir}, and the hub cannot be reached ({_first_line(error)}); check the "
        "network (HTTPS_PROXY, HF_ENDPOINT), or give the path of a local folder"
    ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
