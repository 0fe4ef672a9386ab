"""Tests folders without tokenizer.json: the made one agrees with Transformers, and bytes of half characters are
kept."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from gridwork_server.prepare.agreement import SAMPLES
from gridwork_server.prepare.errors import PrepareError
from gridwork_server.prepare.tokenizer import PreparedTokenizer, prepare_tokenizer

from .support import run

CORPUS = "\n".join(SAMPLES * 3)


def put(folder: Path, model_type: str, **settings: Any) -> Path:
    """Writes the configs of a folder. settings: of tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def sentencepiece_model(folder: Path, name: str, **settings: Any) -> None:
    """Trains a SentencePiece model."""
    (folder.parent / "corpus.txt").write_text(CORPUS)
    prefix = folder.parent / "trained"
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder.parent / "corpus.txt"),
        model_prefix=str(prefix),
        vocab_size=420,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    prefix.with_suffix(".model").rename(folder / name)


def llama(root: Path) -> Path:
    folder = put(root / "llama", "llama", tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>")
    sentencepiece_model(folder, "tokenizer.model", model_type="bpe", byte_fallback=True)
    return folder


def t5(root: Path) -> Path:
    folder = put(root / "t5", "t5", tokenizer_class="T5Tokenizer", extra_ids=0)
    sentencepiece_model(folder, "spiece.model", model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return folder


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer


def gpt2(root: Path) -> Path:
    folder = put(root / "gpt2", "gpt2", tokenizer_class="GPT2Tokenizer", eos_token="<|end|>", unk_token="<|end|>")
    byte_level().model.save(str(folder))
    return folder


def bert(root: Path) -> Path:
    folder = put(root / "bert", "bert", tokenizer_class="BertTokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(CORPUS.lower().split()) | set(CORPUS.lower()))]
    (folder / "vocab.txt").write_text("\n".join(word for word in words if word.strip()) + "\n")
    return folder


def tiktoken(root: Path) -> Path:
    folder = put(root / "tiktoken", "llama", tokenizer_class="PreTrainedTokenizerFast", eos_token="<|end|>")
    words = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"an", b"and"]
    lines = [f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(words)]
    (folder / "tokenizer.model").write_text("".join(lines))
    return folder


def prepared(folder: Path, cache: Path, trust: bool = False) -> PreparedTokenizer:
    """Tokenizer made for a folder that has no tokenizer.json."""
    found = prepare_tokenizer(folder, trust, None, cache)
    assert found is not None
    return found


@pytest.mark.parametrize("make", [llama, t5, gpt2, bert, tiktoken], ids=lambda make: make.__name__)
def test_converted_tokenizer_agrees_with_transformers(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path)
    before = sorted(folder.iterdir())
    found = prepared(folder, tmp_path / "cache")
    assert found.encodes
    ours = Tokenizer.from_file(str(found.path / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*SAMPLES, "unseen words, 777 of them…"):
        ids = theirs.encode(text)
        assert ours.encode(text).ids == ids
        expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == expected
    assert sorted(folder.iterdir()) == before
    settings = json.loads((found.path / "tokenizer_config.json").read_text())
    assert settings["eos_token" if make is not bert else "cls_token"]


def test_a_python_tokenizer_is_described_by_token_bytes(tmp_path: Path) -> None:
    found = prepared(put(tmp_path / "byt5", "t5", tokenizer_class="ByT5Tokenizer"), tmp_path / "cache")
    assert not found.encodes
    ours = Tokenizer.from_file(str(found.path / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "byt5")
    for text in SAMPLES:
        ids = theirs.encode(text)
        assert ours.decode(ids, skip_special_tokens=True) == text
        assert ours.decode(ids, skip_special_tokens=False) == text + "</s>"
    # Half a character has its own id, and its bytes are not lost.
    two = theirs.encode("é", add_special_tokens=False)
    assert len(two) == 2
    assert ours.decode(two[:1]) == "\ufffd"


CUSTOM = '''
from pathlib import Path
from transformers import PreTrainedTokenizer

Path(r"{mark}").touch()

class WordTokenizer(PreTrainedTokenizer):
    """Words with a mark at their end, which becomes a space when another word follows."""

    vocab_files_names = {{"vocab_file": "words.txt"}}

    def __init__(self, vocab_file, **kwargs):
        self.words = Path(vocab_file).read_text().split("\\n")
        super().__init__(unk_token="<unk>", eos_token="<end>", **kwargs)

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        return {{word: id for id, word in enumerate(self.words)}} | self.added_tokens_encoder

    def _tokenize(self, text):
        return [character for word in text.split() for character in [*word[:-1], word[-1] + "</w>"]]

    def _convert_token_to_id(self, token):
        return self.words.index(token) if token in self.words else 0

    def _convert_id_to_token(self, id):
        return self.words[id]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens).replace("</w>", " ").strip()
'''


def custom(root: Path) -> Path:
    folder = put(root / "custom", "llama", auto_map={"AutoTokenizer": ["words.WordTokenizer", None]})
    (folder / "words.py").write_text(CUSTOM.format(mark=root / "has-run"))
    characters = sorted({character for character in CORPUS if not character.isspace()})
    words = ["<unk>", "<end>", *characters, *(character + "</w>" for character in characters)]
    (folder / "words.txt").write_text("\n".join(words))
    return folder


def test_own_tokenizer_code_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = custom(tmp_path)
    with pytest.raises(PrepareError, match="--trust-remote-code"):
        prepared(folder, tmp_path / "cache")
    assert not (tmp_path / "has-run").exists()
    assert not prepared(folder, tmp_path / "cache", trust=True).encodes
    assert (tmp_path / "has-run").exists()


def test_marks_at_the_end_of_words_become_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = custom(tmp_path)
    ours = Tokenizer.from_file(str(prepared(folder, tmp_path / "cache", trust=True).path / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = theirs.encode("Hello, world! 你好，世界！", add_special_tokens=False)
    assert ours.decode(ids).rstrip() == theirs.decode(ids) == "Hello, world! 你好，世界！"


def test_a_conversion_is_cached_until_a_file_changes(tmp_path: Path) -> None:
    folder = gpt2(tmp_path)
    first = prepared(folder, tmp_path / "cache")
    assert prepared(folder, tmp_path / "cache") == first
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert prepared(folder, tmp_path / "cache").path != first.path


def test_a_folder_with_tokenizer_json_needs_no_conversion(tmp_path: Path) -> None:
    folder = put(tmp_path / "model", "llama")
    (folder / "tokenizer.json").write_text("{}")
    assert prepare_tokenizer(folder, False, None, tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "content", "tokenizer_class", "words"),
    [
        ("tokenizer.model", b"\x00\x01 no model", "LlamaTokenizer", ["tokenizer.model"]),
        ("vocab.json", b"{", "GPT2Tokenizer", ["vocab.json"]),
        ("vocab.txt", b"", "BertTokenizer", []),
        ("unrelated.txt", b"x", "LlamaTokenizer", []),
        ("unrelated.txt", b"x", "PreTrainedTokenizerFast", []),
        ("unrelated.txt", b"x", "NoSuchTokenizer", []),
    ],
)
def test_invalid_tokenizer_files_are_reported(
    name: str, content: bytes, tokenizer_class: str, words: list[str], tmp_path: Path
) -> None:
    folder = put(tmp_path / "model", "llama", tokenizer_class=tokenizer_class)
    (folder / name).write_bytes(content)
    with pytest.raises(PrepareError) as error:
        prepared(folder, tmp_path / "cache")
    for word in (str(folder), "tokenizer.json", "again", *words):
        assert word in str(error.value)


def test_output_names_the_tokenizer(tmp_path: Path) -> None:
    outcome = run("prepare", "--model-id", gpt2(tmp_path), home=tmp_path / "home")
    answer = json.loads(outcome.stdout.splitlines()[-1])
    assert answer["model_path"] == str(tmp_path / "gpt2")
    assert answer["tokenizer_encodes"] is True
    assert (Path(answer["tokenizer_path"]) / "tokenizer.json").is_file()
