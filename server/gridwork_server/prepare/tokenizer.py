"""Provides the router with a folder's tokenizer as Transformers loads it.

The folder's own tokenizer.json is used if it is equivalent. Otherwise one is made; for a tokenizer that has no such
form, only the text of its tokens is described. The result lies in the cache, under a hash of the files that it was made
from. The model's folder is not changed.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from gridwork_server.prepare import tokenizer_choice
from gridwork_server.prepare.errors import PrepareError, folder_error
from gridwork_server.prepare.staging import build_folder
from gridwork_server.text import one_line

# Increase it when a conversion's result changes, so that folders made by older versions are not used.
_FORMAT = 2
_MARK = "gridwork.json"
_COPIED = ("tokenizer_config.json", "chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class PreparedTokenizer:
    """A folder with a tokenizer.json."""

    path: Path
    encodes: bool
    """True if it turns text into tokens. Otherwise it only turns tokens into text, and the shard encodes."""


def prepare_tokenizer(
    folder: Path, trust_remote_code: bool, code_revision: str | None, cache_dir: Path
) -> PreparedTokenizer | None:
    """Makes a tokenizer for the folder; None when its own tokenizer.json is equivalent to Transformers' tokenizer.
    Raises PrepareError when no tokenizer can be made of the folder."""
    known = tokenizer_choice.read(folder, cache_dir, trust_remote_code, code_revision)
    if known is None or (known.path is not None and not is_complete(known.path)):
        known = _choose(folder, trust_remote_code, code_revision, cache_dir)
    return None if known.path is None else PreparedTokenizer(known.path, known.encodes)


def _choose(
    folder: Path, trust_remote_code: bool, code_revision: str | None, cache_dir: Path
) -> "tokenizer_choice.TokenizerChoice":
    if (folder / "tokenizer.json").is_file():
        if not _is_tokenizer(folder / "tokenizer.json"):
            return tokenizer_choice.TokenizerChoice(None, True)  # the router reports what is wrong with it
        try:
            same = _is_same(folder, trust_remote_code, code_revision)
        except Exception as error:  # damaged files or a model's own code; the file may work all the same
            logger.warning(
                f"{folder / 'tokenizer.json'} is used as it is, since Transformers cannot load the tokenizer of its "
                f"folder: {one_line(error, typed=False)}"
            )
            return tokenizer_choice.TokenizerChoice(None, True)
        if same:
            found = tokenizer_choice.TokenizerChoice(None, True)
            tokenizer_choice.write(found, folder, cache_dir, trust_remote_code, code_revision)
            return found
    target = cache_dir / "tokenizers" / f"{folder.name}-{_key(folder, trust_remote_code, code_revision)}"

    def build(partial: Path) -> None:
        _build(folder, partial, trust_remote_code, code_revision)

    path = build_folder(target, is_complete, build)
    found = tokenizer_choice.TokenizerChoice(path, bool(json.loads((path / _MARK).read_text())["encodes"]))
    tokenizer_choice.write(found, folder, cache_dir, trust_remote_code, code_revision)
    return found


def _is_tokenizer(path: Path) -> bool:
    """Tells whether the file can be read at all, without importing Transformers."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception:  # the library raises no narrower class
        return False
    return True


def _is_same(folder: Path, trust_remote_code: bool, code_revision: str | None) -> bool:
    """Tells whether tokenizer.json equals the one that Transformers makes of the folder, and whether Transformers'
    named special tokens are those in tokenizer_config.json."""
    from tokenizers import Tokenizer

    from gridwork_server.prepare import agreement

    tokenizer = load_tokenizer(folder, trust_remote_code, code_revision)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if _named(tokenizer) != _named_in_files(folder):
        return False
    text = _serialized(tokenizer)
    if text is None:
        return agreement.find_disagreement(tokenizer, plain) is None
    made = Tokenizer.from_str(text)
    for one in (made, plain):
        one.no_truncation()
        one.no_padding()
    contents = [json.loads(one.to_str()) for one in (made, plain)]
    if plain.post_processor is None and made.num_special_tokens_to_add(False) == 0:
        # Transformers adds a post-processor that does nothing.
        for content in contents:
            content["post_processor"] = None
    return bool(contents[0] == contents[1])


def _named(tokenizer: Any) -> dict[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, (str, dict))}


def _named_in_files(folder: Path) -> dict[str, str]:
    """Named special tokens as the router reads them: from tokenizer_config.json, then from special_tokens_map.json."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        for key, value in content.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def is_complete(folder: Path) -> bool:
    """Tells whether a folder holds a whole conversion. Checking for files is enough, since a rename puts folders in
    place."""
    return (folder / _MARK).is_file() and (folder / "tokenizer.json").is_file()


def _key(folder: Path, trust_remote_code: bool, code_revision: str | None) -> str:
    digest = hashlib.sha256(
        f"{_FORMAT} {trust_remote_code} {code_revision} {tokenizer_choice.transformers_version()}".encode()
    )
    for file in tokenizer_choice.tokenizer_files(folder):
        if file.is_file():
            digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _build(folder: Path, partial: Path, trust_remote_code: bool, code_revision: str | None) -> None:
    from gridwork_server.prepare.agreement import lacks_vocabulary

    if (folder / "tokenizer.json").is_file():
        logger.info(f"{folder / 'tokenizer.json'} tokenizes differently from Transformers; making one that agrees")
    else:
        logger.info(f"{folder} has no tokenizer.json; making one from its other files")
    tokenizer = load_tokenizer(folder, trust_remote_code, code_revision)
    try:
        if lacks_vocabulary(tokenizer):
            raise PrepareError(
                f"{folder} has no tokenizer.json, and its {type(tokenizer).__name__} knows no text: the files of its "
                "vocabulary are missing or of another model; download the model again"
            )
        encodes = _write(tokenizer, folder, partial)
    except PrepareError:
        raise
    except Exception as error:  # a model's own code may raise anything
        logger.opt(exception=True).debug("the tokenizer failed")
        raise PrepareError(
            f"{folder} has no tokenizer.json, and its {type(tokenizer).__name__} fails on ordinary text "
            f"({one_line(error, typed=True)}): its files are damaged, or its code does not fit "
            f"Transformers {tokenizer_choice.transformers_version()}; download the model again"
        ) from error
    _write_settings(tokenizer, folder, partial)
    (partial / _MARK).write_text(json.dumps({"encodes": encodes}))


def load_tokenizer(folder: Path, trust_remote_code: bool, code_revision: str | None) -> Any:
    """Loads the tokenizer with Transformers. Raises PrepareError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder,
            trust_remote_code=trust_remote_code,
            **({"code_revision": code_revision} if trust_remote_code and code_revision else {}),
        )
    except Exception as error:
        raise folder_error(
            error,
            f"the tokenizer of {folder} needs Python code of its own; pass --trust-remote-code if you trust its author",
            f"{folder} has no tokenizer.json, and Transformers cannot make a tokenizer of "
            f"{_candidates(folder)} ({one_line(error, typed=True)}); download the model again, or add a "
            "tokenizer.json",
        ) from error


def _write(tokenizer: Any, folder: Path, partial: Path) -> bool:
    """Writes tokenizer.json; returns whether it encodes texts as the tokenizer does."""
    from tokenizers import Tokenizer

    from gridwork_server.prepare import agreement
    from gridwork_server.prepare.token_bytes import token_bytes, write_tokenizer

    text = _serialized(tokenizer)
    if text is not None:
        disagreement = agreement.find_disagreement(tokenizer, Tokenizer.from_str(text))
        if disagreement is None:
            agreement.warn_of_sentencepiece(tokenizer, folder)
            (partial / "tokenizer.json").write_text(text)
            return True
        logger.warning(f"{type(tokenizer).__name__} cannot be converted, because it would change {disagreement}")
    found = token_bytes(tokenizer)
    write_tokenizer(tokenizer, found, partial / "tokenizer.json")
    Tokenizer.from_file(str(partial / "tokenizer.json"))
    logger.info(
        f"{type(tokenizer).__name__} exists only as Python code: the shard will tokenize with that code (bytes of "
        f"tokens: {found.way})"
    )
    if found.disagrees is not None:
        logger.warning(
            f"the texts of single tokens of {type(tokenizer).__name__} do not add up to its text for all of them, as "
            f"for {found.disagrees[:40]!r}: answers may differ from it in spaces"
        )
    return False


def _serialized(tokenizer: Any) -> str | None:
    """The tokenizer in the form of a tokenizer.json; None when it has no such form."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS, convert_slow_tokenizer

        if type(tokenizer).__name__ not in SLOW_TO_FAST_CONVERTERS:
            return None
        try:
            backend = convert_slow_tokenizer(tokenizer)
        except Exception as error:
            logger.warning(f"{type(tokenizer).__name__} cannot be converted: {one_line(error, typed=False)}")
            return None
    return str(backend.to_str())


def _write_settings(tokenizer: Any, folder: Path, partial: Path) -> None:
    """Writes the chat template and the special tokens as the router reads them."""
    for name in _COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, partial / name)
    templates = folder / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, partial / templates.name)
    path = partial / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings.pop("auto_map", None)
    # Includes those of special_tokens_map.json, where Transformers reads it, and those that the class supplies.
    named = set(getattr(tokenizer, "SPECIAL_TOKENS_ATTRIBUTES", ()))
    settings = {name: value for name, value in settings.items() if name not in named} | _named(tokenizer)
    template = getattr(tokenizer, "chat_template", None)
    if "chat_template" not in settings and isinstance(template, str):
        settings["chat_template"] = template
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")


def _candidates(folder: Path) -> str:
    names = [
        file.name
        for file in sorted(folder.iterdir())
        if file.suffix in (".model", ".txt", ".tiktoken", ".vocab", ".bpe") or file.name.startswith(("vocab", "merges"))
    ]
    return ", ".join([*names, "tokenizer_config.json"]) if names else "its tokenizer_config.json alone"
