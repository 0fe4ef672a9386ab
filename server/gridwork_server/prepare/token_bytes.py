"""Finds the bytes of every token of a tokenizer that exists only as Python code, and makes a tokenizer.json of them.

The router turns every generated token into text, and cannot call Python each time. For nearly all tokenizers the text
is the concatenation of its tokens' bytes. This module tries the known ways of writing vocabularies, and keeps the first
one that reproduces the tokenizer's own text for texts of many kinds.
"""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridwork_server.prepare.agreement import SAMPLES, decode

_SPACE = "\u2581"
"""Character that represents a space in SentencePiece's vocabularies."""


@dataclass(frozen=True)
class TokenBytes:
    """Bytes of tokens, by id."""

    table: list[bytes]
    way: str
    """Name of the way in which the vocabulary is written, for people to read."""
    disagrees: str | None
    """A text whose tokens do not concatenate to the tokenizer's own text; None when there is none."""


def token_bytes(tokenizer: Any) -> TokenBytes:
    """Finds the bytes of every token."""
    size = max([len(tokenizer), *(id + 1 for id in tokenizer.added_tokens_decoder)])
    best: TokenBytes | None = None
    for name, way in _ENCODINGS.items():
        table = [_bytes_of(tokenizer, id, way) for id in range(size)]
        disagreements = [text for text in SAMPLES if not _agrees(tokenizer, table, text)]
        if not disagreements:
            return TokenBytes(table, name, None)
        if best is None or way is _as_decoded:
            best = TokenBytes(table, name, disagreements[0])
    assert best is not None
    return best


def write_tokenizer(tokenizer: Any, found: TokenBytes, path: Path) -> None:
    """Writes a tokenizer.json that turns ids into text. It is not meant to encode text."""
    alphabet = _alphabet()
    added = tokenizer.added_tokens_decoder
    vocab: list[list[Any]] = [["".join(alphabet[byte] for byte in data), 0.0] for data in found.table]
    for id, token in added.items():
        vocab[id][0] = token.content
    special = set(tokenizer.all_special_ids) | {id for id, token in added.items() if token.special}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": vocab[id][0],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": id in special,
            }
            for id in sorted(special | set(added))
            if vocab[id][0]
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        # Unigram is the only model whose vocabulary is a list, in which several ids may have the same bytes.
        "model": {"type": "Unigram", "unk_id": None, "vocab": vocab, "byte_fallback": False},
    }
    path.write_text(json.dumps(content, ensure_ascii=False))


def _agrees(tokenizer: Any, table: list[bytes], text: str) -> bool:
    """Tells whether the table reproduces the tokenizer's text for the tokens of `text` after those of another text."""
    before = tokenizer.encode("Once", add_special_tokens=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    concatenated = b"".join(table[id] for id in [*before, *ids]).decode(errors="replace")
    # Some tokenizers strip the ends of a text, which neighbouring tokens would reveal.
    return decode(tokenizer, [*before, *ids]).strip() == concatenated.strip()


def _bytes_of(tokenizer: Any, id: int, way: "Callable[[Any, int, str], bytes | None]") -> bytes:
    added = tokenizer.added_tokens_decoder.get(id)
    if added is not None:
        return str(added.content).encode()
    try:
        token = tokenizer.convert_ids_to_tokens(id)
    except Exception:  # a model's own code may raise anything for unused ids
        return b""
    if isinstance(token, bytes):
        return token
    if not isinstance(token, str):
        return b""
    return way(tokenizer, id, token) or b""


def _byte_level(_tokenizer: Any, _id: int, token: str) -> bytes | None:
    bytes_of = _byte_of_character()
    found = [bytes_of.get(character) for character in token]
    return None if None in found else bytes(byte for byte in found if byte is not None)


def _latin(_tokenizer: Any, _id: int, token: str) -> bytes | None:
    return token.encode("latin-1") if all(ord(character) < 0x100 for character in token) else None


def _pieces(_tokenizer: Any, _id: int, token: str) -> bytes | None:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(_SPACE, " ").encode()


def _as_decoded(tokenizer: Any, id: int, _token: str) -> bytes | None:
    before = tokenizer.encode("Once", add_special_tokens=False)
    start, whole = decode(tokenizer, before), decode(tokenizer, [*before, id])
    return whole.removeprefix(start).encode(errors="replace") if whole.startswith(start) else None


def _as_followed(tokenizer: Any, id: int, _token: str) -> bytes | None:
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in ("Once", "a"))
    last = decode(tokenizer, after).strip()
    start = decode(tokenizer, [*before, *after]).removesuffix(last)
    whole = decode(tokenizer, [*before, id, *after])
    if not whole.startswith(start) or not whole.endswith(last) or len(whole) < len(start) + len(last):
        return None
    return whole[len(start) : len(whole) - len(last)].encode(errors="replace")


_ENCODINGS: "dict[str, Callable[[Any, int, str], bytes | None]]" = {
    "byte-level alphabet": _byte_level,
    "one character a byte": _latin,
    "SentencePiece": _pieces,
    "as decoded behind others": _as_decoded,
    "as decoded between others": _as_followed,
}


@functools.cache
def _byte_of_character() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(_characters())}


def _alphabet() -> list[str]:
    """GPT-2's byte-level alphabet, by byte: printable bytes of Latin-1 represent themselves, and the other bytes are
    represented by the characters from U+0100 on, in order."""
    return list(_characters())


def _characters() -> Iterator[str]:
    stand_ins = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            yield chr(byte)
        else:
            yield chr(stand_ins)
            stand_ins += 1
