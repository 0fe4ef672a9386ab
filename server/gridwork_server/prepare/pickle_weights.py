"""Converts pickled weights to safetensors. Only tensors are read: no function that a pickle names is called, and a file
that needs more is refused."""

import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from loguru import logger

from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.staging import build_folder, files_key
from gridwork_server.text import one_line

# Increase it when a conversion's result changes, so that folders made by older versions are not used.
_FORMAT = 1
_INDEX = "pytorch_model.bin.index.json"
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "adapter_model")
SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
FLAG = "--allow-pickle-weights"


def pickle_files(folder: Path) -> list[Path]:
    """Pickle files with the model's weights; none when there are safetensors. Raises PrepareError."""
    if any(file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_")):
        return []
    index = folder / _INDEX
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PrepareError(f"{index} is damaged ({error!r}); download it again") from error
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise PrepareError(f"{folder / name} is missing, and {_INDEX} lists it; download it again")
        return [folder / name for name in names]
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in SUFFIXES and file.is_file() and not file.name.startswith(_NOT_WEIGHTS)
    ]


def refusal(file: Path) -> PrepareError:
    """Error for a pickle file that was not allowed."""
    return PrepareError(
        f"{file} is a pickle file, which can run code when it is loaded; convert it with "
        "`AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)` of the transformers package, or pass "
        f"{FLAG} to have nothing but tensors read from it"
    )


def convert_pickles(folder: Path, files: list[Path], cache_dir: Path) -> Path:
    """A copy of `folder` with safetensors in place of `files`; made in `cache_dir` the first time, and found there
    later. Files that changed (by path, size or modification time) are converted again. Raises PrepareError."""
    target = cache_dir / "converted" / f"{folder.name}-{files_key(f'{_FORMAT}', folder.iterdir())}"
    return build_folder(target, is_complete, lambda partial: convert(folder, files, partial))


def is_complete(folder: Path) -> bool:
    """Tells whether a folder holds a whole conversion. Checking for files is enough, since a rename puts folders in
    place."""
    return (folder / "config.json").is_file() and (folder / "model.safetensors.index.json").is_file()


def convert(folder: Path, files: list[Path], partial: Path) -> None:
    """Writes a copy of `folder` with safetensors in place of `files` into an existing folder. Raises PrepareError."""
    from safetensors.torch import save_file

    needed_bytes = sum(file.stat().st_size for file in files)
    free_bytes = shutil.disk_usage(partial).free
    if needed_bytes > free_bytes:
        raise PrepareError(
            f"{folder} has {needed_bytes / 1e6:.0f} MB of pickled weights to convert, but {partial.parent} has only "
            f"{free_bytes / 1e6:.0f} MB free; free some space, or name another folder"
        )
    copy_rest(folder, partial)
    weight_map: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        logger.info(f"converting {file} to safetensors ({number} of {len(files)})")
        tensors = copy_shared_memory(read_tensors(file))
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(tensors, partial / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if not weight_map:
        raise PrepareError(f"{files[0]} holds no tensors; download the model again")
    (partial / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def copy_rest(folder: Path, target: Path) -> None:
    """Copies everything but the weights: configs, tokenizer, code."""
    for file in folder.iterdir():
        if file.is_file() and file.suffix not in (*SUFFIXES, ".safetensors") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
        elif file.is_dir() and any(file.rglob("*.py")):
            shutil.copytree(file, target / file.name)


def read_tensors(file: Path) -> dict[str, Any]:
    """Reads the tensors of a pickle file by name, without running its code. Raises PrepareError for any other
    content."""
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise PrepareError(
            f"{file} needs more than tensors ({_wanted(error)}); nothing of it was run; it may be harmful, so get "
            "the model from somewhere else, as safetensors"
        ) from None
    except Exception as error:  # a reader may raise anything for a truncated file
        raise PrepareError(f"{file} is damaged ({one_line(error, typed=False)}); download it again") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise PrepareError(f"{file} holds a {type(content).__name__}, not tensors by name; it is not a model's weights")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise PrepareError(
                f"{file} holds a {type(value).__name__} under `{name}`, where only tensors are expected; it is "
                "not a model's weights"
            )
    return content


def copy_shared_memory(tensors: dict[str, Any]) -> dict[str, Any]:
    """Copies tensors where needed, so that none shares memory with another: safetensors requires this."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        separate[name] = tensor if whole and place not in seen else tensor.clone().contiguous()
        seen.add(place)
    return separate


def _wanted(error: Exception) -> str:
    """Class or operation that the pickle needs, by PyTorch's message but without its advice to run the file."""
    text = one_line(error, typed=False)
    for pattern in (r"GLOBAL:? (?:GLOBAL )?(\S+)", r"Unsupported class (\S+)", r"(Unsupported operand \S+)"):
        if found := re.search(pattern, text):
            return found[1]
    return "it is not a file of PyTorch" if "operand" in text else text[:200]
