"""Tests that the router's tokenizer.json agrees with Transformers, whatever a folder's files configure."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from gridwork_server.prepare import tokenizer_choice
from gridwork_server.prepare.agreement import find_disagreement
from gridwork_server.prepare.tokenizer import PreparedTokenizer, prepare_tokenizer

from ..prepare.test_tokenizer import byte_level
from .keys import TOKENIZER_CONFIG, Read, WithoutEffect

TEXTS = ["a <|new|>b<|image|> (c) <|end|>x", "<|NEW|> It's", " <|new|>"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a byte-level tokenizer whose class uses tokenizer.json as it is."""
    path = tmp_path / "model"
    path.mkdir()
    byte_level().save(str(path / "tokenizer.json"))
    (path / "config.json").write_text('{"model_type": "gpt2"}')
    configure(path)
    return path


def configure(folder: Path, **settings: Any) -> None:
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def prepared(folder: Path) -> PreparedTokenizer | None:
    return prepare_tokenizer(folder, False, None, folder.parent / "cache")


def served(folder: Path) -> Tokenizer:
    made = prepared(folder)
    return Tokenizer.from_file(str((folder if made is None else made.path) / "tokenizer.json"))


def agrees(folder: Path) -> None:
    truth: Any = transformers.AutoTokenizer.from_pretrained(folder)
    found = served(folder)
    assert find_disagreement(truth, found) is None
    for text in TEXTS:
        assert found.encode(text).ids == truth.encode(text)
        for skip in (False, True):
            ids = truth.encode(text)
            expected = truth.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert found.decode(ids, skip_special_tokens=skip) == expected


def test_every_key_of_transformers_is_listed() -> None:
    source = "".join(inspect.getsource(owner) for owner in (TokenizersBackend, PreTrainedTokenizerBase))
    read = set(re.findall(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)["']""", source))
    read |= {f"{name}" for name in PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES}
    arguments = {
        # Arguments of calls, not keys of tokenizer_config.json.
        *("cache_dir", "force_download", "proxies", "token", "revision", "subfolder", "code_revision", "config"),
        *("_from_pipeline", "_from_auto", "_commit_hash", "trust_remote_code", "return_offsets_mapping"),
        *(
            "save_jinja_files",
            "text",
            "images",
            "is_split_into_words",
            "vocab_size",
            "tokenizer",
            "verbose",
            "split_special_tokens",
        ),
        *("commit_message", "files_loaded", "max_target_length", "sanitize_control_tokens", "use_source_tokenizer"),
        *("device", "dtype", "padding", "truncation", "return_tensors", "skip_special_tokens", "repo_id"),
    }
    missing = read - set(TOKENIZER_CONFIG) - arguments
    assert not missing


_CASES = [
    pytest.param(key, sample, id=f"{key}-{index}")
    for key, entry in TOKENIZER_CONFIG.items()
    for index, sample in enumerate(entry.samples)
]


@pytest.mark.parametrize(("key", "sample"), _CASES)
def test_each_key_is_read_as_transformers_reads_it(key: str, sample: Any, folder: Path) -> None:
    entry = TOKENIZER_CONFIG[key]
    configure(folder, **entry.settings | {key: sample})
    agrees(folder)
    if isinstance(entry, WithoutEffect):
        assert prepared(folder) is None
    else:
        assert isinstance(entry, Read)


def test_special_tokens_map_and_added_tokens_are_read_like_transformers(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<|new|>", "pad_token": {"content": "<|end|>"}}')
    (folder / "added_tokens.json").write_text('{"<|image|>": 401, "<|new|>": 400}')
    agrees(folder)
    made = prepared(folder)
    assert made is not None
    named = json.loads((made.path / "tokenizer_config.json").read_text())
    assert (named["bos_token"], named["pad_token"], named["eos_token"]) == ("<|new|>", "<|end|>", "<|end|>")
    # With a list of all added tokens in tokenizer_config.json, Transformers reads neither file.
    configure(folder, added_tokens_decoder={})
    agrees(folder)


def test_special_tokens_of_the_class_are_written(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    agrees(folder)
    made = prepared(folder)
    assert made is not None
    assert json.loads((made.path / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"


def test_do_lower_case_is_read_by_the_class(tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "kettle", "Kettle", "cafe", "café"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    for setting in (True, False):
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": setting}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        truth: Any = transformers.AutoTokenizer.from_pretrained(folder)
        ids = served(folder).encode("Kettle Café").ids
        assert ids == truth.encode("Kettle Café")


def test_tokenizer_json_is_used_if_transformers_cannot_load_the_folder(folder: Path) -> None:
    configure(folder, padding_side="middle")
    assert prepared(folder) is None


def test_tokenizer_choice_is_cached_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(folder, extra_special_tokens=["<|new|>"])
    made = prepared(folder)
    assert made is not None
    cache = folder.parent / "cache"
    assert tokenizer_choice.read(folder, cache, False, None) == tokenizer_choice.TokenizerChoice(made.path, True)
    assert tokenizer_choice.read(folder, cache, True, None) is None
    with monkeypatch.context() as patch:
        patch.setattr("gridwork_server.prepare.tokenizer.load_tokenizer", None)  # it is not called again
        assert prepared(folder) == made
    (folder / "model.safetensors").write_text("weights do not matter")
    assert tokenizer_choice.read(folder, cache, False, None) is not None
    configure(folder)
    assert tokenizer_choice.read(folder, cache, False, None) is None
    assert prepared(folder) is None


def test_hash_equals_the_launchers() -> None:
    assert tokenizer_choice._fnv1a(b"foobar") == 0x85944171F73967E8
