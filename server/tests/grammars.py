"""Grammars over a small vocabulary, for tests."""

import itertools
import json
import string

from gridwork_server._proto import shard_pb2 as pb

from . import models

END = 2
FIRST = 3
_SINGLE = [bytes([code]) for code in range(0x20, 0x7F)]
_PAIRS = [(a + b).encode() for a, b in itertools.product(string.ascii_lowercase[:5], repeat=2)]

#: Texts of all tokens. The last tokens of the vocabulary have none.
TEXTS = [b"<pad>", b"<s>", b"</s>", *_SINGLE, *_PAIRS]


def token_table(end_ids: tuple[int, ...] = (END,)) -> pb.TokenTable:
    """The table of a model with `models.VOCAB` logits."""
    assert len(TEXTS) < models.VOCAB
    return pb.TokenTable(
        text=b"".join(TEXTS), lengths=[len(text) for text in TEXTS], special_ids=[0, 1, END], end_ids=end_ids
    )


def grammar(rules: str) -> str:
    """The contract's form of a Lark grammar."""
    root = '%llguidance {"no_forcing": true}\nstart: @answer'
    parts = [{"name": "root", "lark_grammar": root}, {"name": "answer", "lark_grammar": rules}]
    return json.dumps({"grammars": parts})


def text(tokens: list[int]) -> str:
    """Text of tokens, without those that end it."""
    return b"".join(TEXTS[token] for token in tokens if token != END).decode()


def tokens(content: str) -> list[int]:
    """Tokens of a text, one for each character."""
    return [TEXTS.index(character.encode()) for character in content]
