"""Merges PEFT adapters onto their base model, into an ordinary model's folder in the cache."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger

from gridwork_server.prepare import pickle_weights, quantized_weights
from gridwork_server.prepare.errors import PrepareError, folder_error
from gridwork_server.prepare.staging import build_folder, check_space, files_key, megabytes
from gridwork_server.text import one_line, some

# Increase it when a merge's result changes, so that folders made by older versions are not used.
_FORMAT = 2
CONFIG = "adapter_config.json"
_BASE = "base_model_name_or_path"
_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "spiece", "chat_template")


_UNMERGEABLE = {
    "alora_invocation_tokens": "the adapter takes effect only from these tokens on",
    "arrow_config": "the adapter is mixed with others for each token",
}
"""Keys of adapters whose effect depends on the tokens, with the reason why they cannot be merged."""


def is_adapter(folder: Path) -> bool:
    """Tells whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def merge_adapter(
    folder: Path,
    base_folder_of: Callable[[str], Path],
    allow_pickle: bool,
    trust_remote_code: bool,
    code_revision: str | None,
    cache_dir: Path,
) -> Path:
    """Folder of the adapter merged onto its base; made in `cache_dir` the first time, and found there later.

    base_folder_of: gives the folder of a model by its path or name. Raises PrepareError.
    """
    weights = find_weights(folder, allow_pickle)
    base = find_base(folder, base_folder_of)
    key = files_key(f"{_FORMAT} {trust_remote_code} {code_revision}", [*folder.iterdir(), *base.iterdir()])
    target = cache_dir / "merged" / f"{folder.name}-{key}"

    def build(partial: Path) -> None:
        merge(folder, weights, base, partial, trust_remote_code, code_revision)

    return build_folder(target, is_complete, build)


def merge(
    folder: Path, weights: Path, base: Path, partial: Path, trust_remote_code: bool, code_revision: str | None
) -> None:
    """Writes the adapter merged onto its base into an existing folder. weights: the adapter's, of `find_weights`.
    Raises PrepareError."""
    logger.info(f"merging the adapter {folder} onto {base}")
    try:
        _merge(folder, weights, _read_config(folder), base, partial, trust_remote_code, code_revision)
    except PrepareError:
        raise
    except Exception as error:
        raise folder_error(
            error,
            f"the adapter's base needs Python code of its own ({base / 'config.json'} has auto_map); "
            "pass --trust-remote-code if you trust its author",
            f"the adapter {folder} cannot be merged onto {base} ({one_line(error, typed=True)}); "
            "it is damaged, or was made for another model",
        ) from error


def is_complete(folder: Path) -> bool:
    """Tells whether a folder holds a whole merge. Checking for files is enough, because a rename puts folders in
    place."""
    has_weights = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    return has_weights and (folder / "config.json").is_file()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise PrepareError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(config, dict):
        raise PrepareError(f"{path} is not a JSON object; download it again")
    if not isinstance(config.get("peft_type"), str):
        raise PrepareError(f"{path} has no peft_type, so it is not an adapter of PEFT; use another adapter")
    return config


def find_weights(folder: Path, allow_pickle: bool) -> Path:
    """The file with an adapter's weights. Raises PrepareError."""
    if (folder / _WEIGHTS).is_file():
        return folder / _WEIGHTS
    if (folder / _PICKLE).is_file():
        if not allow_pickle:
            raise pickle_weights.refusal(folder / _PICKLE)
        return folder / _PICKLE
    raise PrepareError(f"{folder} has neither {_WEIGHTS} nor {_PICKLE}; download the adapter again")


def find_base(folder: Path, base_folder_of: Callable[[str], Path]) -> Path:
    """The folder of an adapter's base. base_folder_of: gives the folder of a model by its path or name. Raises
    PrepareError."""
    name = _read_config(folder).get(_BASE)
    where = f"{folder / CONFIG}, {_BASE}"
    if not isinstance(name, str) or not name:
        raise PrepareError(f"{where}: no base model is named; put the path or hub name of the adapter's base there")
    # A relative path may be relative to the adapter's own folder.
    beside = folder / name
    try:
        base = base_folder_of(str(beside) if (beside / "config.json").is_file() else name)
    except PrepareError as error:
        message = re.sub(r"^--model-id ", "", str(error))
        raise PrepareError(f"{where}: {message}") from error
    if not (base / "config.json").is_file():
        raise PrepareError(f"{where}: {base} has no config.json, so it is not a model; name the adapter's base there")
    quantized_weights.check_base(base)
    return base


def _merge(
    folder: Path,
    weights: Path,
    config: dict[str, Any],
    base: Path,
    partial: Path,
    trust_remote_code: bool,
    code_revision: str | None,
) -> None:
    import torch
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from transformers.utils import logging as transformers_logging

    from gridwork_server.prepare import adapter_weights  # imports PyTorch, which takes seconds

    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "dtype": "auto", "local_files_only": True}
    if trust_remote_code and code_revision:
        options["code_revision"] = code_revision
    model = _auto_class(config).from_pretrained(base, use_safetensors=True, **options)
    try:
        peft_config = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise PrepareError(
            f"{folder / CONFIG} cannot be used ({one_line(error, typed=False)}); download the adapter again"
        ) from error
    if peft_config.is_prompt_learning:
        raise PrepareError(
            f"{folder / CONFIG} has the peft_type `{config['peft_type']}`, which adds tokens in place of changing "
            "weights; it cannot be merged"
        )
    for key, reason in _UNMERGEABLE.items():
        if getattr(peft_config, key, None):
            raise PrepareError(f"{folder / CONFIG} has {key}: {reason}; it cannot be merged")
    peft_config.inference_mode = True
    tensors = adapter_weights.without_second_names(_read(weights))
    rows = adapter_weights.vocabulary_rows(model, tensors, getattr(peft_config, "trainable_token_indices", None))
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        torch.manual_seed(0)  # makes the rows that the adapter does not have the same every time
        model.resize_token_embeddings(rows)
    was_tied = adapter_weights.is_tied(model)
    wrapped: Any = get_peft_model(model, peft_config)
    result: Any = set_peft_model_state_dict(wrapped, tensors)
    unexpected = [key for key in result.unexpected_keys if not adapter_weights.is_copy(key, tensors)]
    if unexpected:
        raise PrepareError(
            f"{weights} has tensors that {type(model).__name__} has no place for: "
            f"{some(unexpected)}; the adapter was made for another model"
        )
    missing = [key for key in result.missing_keys if _belongs_to_adapter(key, wrapped)]
    if missing:
        raise PrepareError(f"{weights} lacks {some(missing)}; the adapter is incomplete, or was made for another model")
    if not hasattr(wrapped, "merge_and_unload"):
        raise PrepareError(f"{folder / CONFIG} has the peft_type `{config['peft_type']}`, which cannot be merged")
    adapter_weights.copy_shared_weights(wrapped)
    with torch.no_grad():
        try:
            whole = wrapped.merge_and_unload(safe_merge=True)
        except NotImplementedError as error:
            raise PrepareError(
                f"{folder / CONFIG} describes an adapter that cannot be merged: {one_line(error, typed=False)}"
            ) from error
    adapter_weights.update_tying(whole, was_tied)
    needed_bytes = sum(parameter.nbytes for parameter in whole.parameters())
    check_space(partial, needed_bytes, f"the merged model needs {megabytes(needed_bytes)}")
    whole.save_pretrained(partial)
    _copy_settings(folder, base, partial)


def _auto_class(config: dict[str, Any]) -> Any:
    import transformers

    by_task = {
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
        "TOKEN_CLS": transformers.AutoModelForTokenClassification,
        "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
        "FEATURE_EXTRACTION": transformers.AutoModel,
    }
    return by_task.get(str(config.get("task_type")), transformers.AutoModelForCausalLM)


def _read(weights: Path) -> dict[str, Any]:
    if weights.suffix != ".safetensors":
        return pickle_weights.read_tensors(weights)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(weights)
    except (SafetensorError, OSError) as error:
        raise PrepareError(f"{weights} is damaged ({one_line(error, typed=False)}); download it again") from error


def _belongs_to_adapter(key: str, wrapped: Any) -> bool:
    return wrapped.prefix in key or ".modules_to_save." in key


def _copy_settings(folder: Path, base: Path, partial: Path) -> None:
    """Copies the adapter's tokenizer if it has one, else the base's; code and generation settings are the base's."""
    has_tokenizer = any(
        file.name.startswith(("tokenizer.", "vocab", "spiece")) or file.suffix == ".tiktoken"
        for file in folder.iterdir()
    )
    source = folder if has_tokenizer else base
    for file in source.iterdir():
        if file.is_file() and (file.name.startswith(_TOKENIZER) or file.suffix == ".tiktoken"):
            shutil.copyfile(file, partial / file.name)
    for file in base.iterdir():
        named = file.suffix == ".py" or file.name in ("generation_config.json", "preprocessor_config.json")
        if file.is_file() and named and not (partial / file.name).exists():
            shutil.copyfile(file, partial / file.name)
