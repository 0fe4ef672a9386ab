"""Compares a tokenizer.json with a tokenizer of Transformers on texts of many kinds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAMPLES = (
    "Hello, world! The quick brown fox jumps over the lazy dog.",
    "It's 3.14159, isn't it? 1,000,000 and 2^10 = 1024 (mod 7).",
    "def area(width, height):\n    return width * height  # metres\n\n\tprint(area(2, 3))",
    " leading and trailing spaces,   several   between  ",
    "Café naïve Größe Straße façade jalapeño smörgåsbord",
    "Москва просыпается медленно. Η θάλασσα είναι ήσυχη.",
    "東京の朝は早い。서울의 밤은 길다。你好，世界！",
    "الطريق طويل שלום עולם नमस्ते दुनिया",
    "🚀 and 👩‍🚀, ☀️ then 🌧️ then 🌈",
    '{"name": "kettle", "watts": 2000, "boils": true, "colours": ["red", null]}',
    "user: hi\nassistant: hello\n\n",
    "x",
)


@dataclass(frozen=True)
class Disagreement:
    """A text that the two tokenizers treat differently."""

    text: str
    detail: str

    def __str__(self) -> str:
        return f"{self.text[:40]!r}: {self.detail}"


def find_disagreement(tokenizer: Any, candidate: "Tokenizer") -> Disagreement | None:
    """First disagreement; None when there is none. tokenizer: the reference, of Transformers; candidate: tokenizer as
    the router will use it, without truncation and padding."""
    candidate.no_truncation()
    candidate.no_padding()
    special = [str(token) for token in tokenizer.all_special_tokens[:4]]
    for text in (*SAMPLES, *(f"before {token}after" for token in special)):
        for add_special_tokens in (False, True):
            expected = list(tokenizer.encode(text, add_special_tokens=add_special_tokens))
            found = candidate.encode(text, add_special_tokens=add_special_tokens).ids
            if found != expected:
                return Disagreement(text, f"{found[:12]} in place of {expected[:12]}")
        for skip_special_tokens in (False, True):
            expected_text = decode(tokenizer, expected, skip_special_tokens)
            found_text = candidate.decode(expected, skip_special_tokens=skip_special_tokens)
            if found_text != expected_text:
                return Disagreement(text, f"decoded to {found_text!r} in place of {expected_text!r}")
    return None


def decode(tokenizer: Any, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
    """Text of the ids, with spaces unchanged."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))


def lacks_vocabulary(tokenizer: Any) -> bool:
    """Tells whether ordinary text gives only special tokens, which means that the vocabulary's files are missing."""
    special = set(tokenizer.all_special_ids)
    return all(set(tokenizer.encode(text, add_special_tokens=False)) <= special for text in SAMPLES)


def warn_of_sentencepiece(tokenizer: Any, folder: Path) -> None:
    """Logs the first text that the fast tokenizer splits differently from the SentencePiece model it was made from."""
    files = sorted(file for file in folder.glob("*.model") if file.is_file())
    if not files:
        return
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.Load(str(files[0]))
    except (RuntimeError, OSError):
        return  # the file belongs to tiktoken, which uses the same name
    for text in SAMPLES:
        pieces = [processor.id_to_piece(id) for id in processor.encode(text)]
        ours = tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))
        if pieces != ours:
            same = next((i for i, pair in enumerate(zip(ours, pieces, strict=False)) if pair[0] != pair[1]), 0)
            logger.warning(
                f"the tokenizer that Transformers makes of {files[0].name} splits {text[:40]!r} differently from "
                f"SentencePiece itself: into {ours[same : same + 5]} and not {pieces[same : same + 5]} "
                f"from piece {same} on"
            )
            return
