"""The workloads: conversations in mixed lengths, the same for every server and in every round. Only schemas that
must be new differ.

Each number of clients has its own texts, so that a server that caches prefixes has seen none of them.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from suite.families import FAMILIES
from suite.load import Conversation, Turn
from suite.prompts import chat_prompts, output_tokens, question, text_of

SMALL = ("smollm2-135m",)
"""Models of workloads that one model is enough for."""

VLLM = ("vllm-",)
"""Beginnings of the names of peers whose servers follow schemas."""


@dataclass(frozen=True)
class Workload:
    name: str
    about: str
    levels: tuple[int, ...]  # numbers of clients; for `context`, tokens of the prompt
    make: Callable[[int, float], list[Conversation]]
    """Makes the conversations for a level, and the given share of them for slow models, at least one a client."""
    peers: bool = True  # whether peers are measured, too
    peer_prefixes: tuple[str, ...] = ("",)  # beginnings of the names of the peers that can do it
    variants: tuple[str, ...] = ()  # contestants that take part in this workload alone
    models: tuple[str, ...] = ()  # models it fits; empty: all


def _count(clients: int, part: float) -> int:
    return max(clients, round(part * min(128, 8 + 3 * clients)))


def _chat(clients: int, part: float) -> list[Conversation]:
    texts = chat_prompts(_count(clients, part), seed=clients)
    return [(Turn(text, output_tokens(index)),) for index, text in enumerate(texts)]


def _long_prompt(clients: int, part: float) -> list[Conversation]:
    count = max(clients, round(part * 8))
    return [
        (Turn(f"{text_of(900 + 100 * (i % 8), seed=1000 * clients + i)}\n\n{question(6)}\n", 8 + 4 * (i % 3)),)
        for i in range(count)
    ]


def _shared_prompt(clients: int, part: float) -> list[Conversation]:
    # Each number of clients has its own system prompt, which its first users compute.
    system = f"You help the readers of these texts. {text_of(800, seed=77 + clients)}"
    texts = chat_prompts(max(clients, round(part * 2 * clients)), seed=500 + clients)
    return [(Turn(f"{system}\n\nUser {i}: {text[:300]}\n", 16 + 8 * (i % 4)),) for i, text in enumerate(texts)]


def _conversation(about_tokens: int, seed: int, index: int) -> Conversation:
    """Eight turns about a text of about this many tokens."""
    opening = text_of(about_tokens, seed=seed + index)
    questions = [f"\n\nUser: {question(index + turn)}\nAssistant:" for turn in range(8)]
    return tuple(Turn(opening + text if turn == 0 else text, 16) for turn, text in enumerate(questions))


def _multi_turn(clients: int, part: float) -> list[Conversation]:
    return [_conversation(1100, 31 * clients, index) for index in range(max(clients, round(part * 8)))]


def _long_conversation(clients: int, part: float) -> list[Conversation]:
    return [_conversation(6000, 7000 * clients, index) for index in range(max(clients, round(part * 2)))]


OFFLINE_OUTPUTS = (8, 128, 16, 48, 24, 96, 32, 64)
"""Tokens of the answers of `offline`, mixed: a static batch is as slow as its longest answer."""

OFFLINE_REQUESTS = 64


def _offline(clients: int, part: float) -> list[Conversation]:
    # At least two batches: within one, no waiting request could replace one that has ended.
    texts = chat_prompts(min(OFFLINE_REQUESTS, max(2 * clients, 32, round(part * OFFLINE_REQUESTS))), seed=900)
    return [(Turn(f"{clients}. {text[:800]}", OFFLINE_OUTPUTS[i % 8]),) for i, text in enumerate(texts)]


def _decode(clients: int, part: float) -> list[Conversation]:
    return [(Turn(f"{i}. {question(i)}", 64),) for i in range(max(clients, round(part * 4)))]


def _families(clients: int, part: float) -> list[Conversation]:
    # About 128 tokens of random words each, so that prompts take as long as answers.
    return [(Turn(f"{i}. {text_of(125, seed=60000 + 100 * clients + i)}", 64),) for i in range(max(clients, 2))]


def _context(tokens: int, part: float) -> list[Conversation]:
    return [(Turn(text_of(tokens, seed=tokens + i), 32),) for i in range(max(1, round(part * 2)))]


def _memory(clients: int, part: float) -> list[Conversation]:
    # All at once, with nearly as many tokens as a cache of 1 GiB holds for SmolLM2-135M.
    return [(Turn(text_of(1750, seed=4000 + i), 64),) for i in range(clients)]


def _person_list(number: int = 0) -> str:
    """Schema of a list that does not end within a benchmark's answer. number: schemas of different numbers have no
    property in common."""
    end = f"_{number}" if number else ""
    person = {
        "type": "object",
        "properties": {
            f"name{end}": {"type": "string", "maxLength": 40},
            f"age{end}": {"type": "integer", "minimum": 0, "maximum": 120},
            f"tags{end}": {"type": "array", "items": {"enum": ["new", "old", "red", "green"]}, "maxItems": 4},
        },
        "required": [f"name{end}", f"age{end}", f"tags{end}"],
        "additionalProperties": False,
    }
    return json.dumps({"type": "array", "items": person, "minItems": 200})


def _people(count: int, seed: int, tokens: int, schema_of: Callable[[int], str]) -> list[Conversation]:
    """Questions with answers of equal length. schema_of: of each question by its index."""
    return [(Turn(f"{seed + i}. List some people, with their age.\n", tokens, schema_of(i)),) for i in range(count)]


def _constrained(clients: int, part: float) -> list[Conversation]:
    return _people(max(clients, round(part * 4)), 1000 * clients, 64, lambda index: _person_list())


def _unconstrained(clients: int, part: float) -> list[Conversation]:
    return _people(max(clients, round(part * 4)), 5000 * clients, 64, lambda index: "")


def _beside_constrained(clients: int, part: float) -> list[Conversation]:
    both = _people(clients, 9000 * clients, 64, lambda index: _person_list() if index % 2 else "")
    return [(replace(turn, is_counted=not turn.schema),) for (turn,) in both]


def _new_schemas(clients: int, part: float) -> list[Conversation]:
    # Schemas of a time are new to a server that runs, too.
    salt = time.time_ns() // 1000
    return _people(max(clients, round(part * 24)), 700, 2, lambda index: _person_list(salt + index))


def _no_schemas(clients: int, part: float) -> list[Conversation]:
    return _people(max(clients, round(part * 24)), 800, 2, lambda index: "")


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("start", "from the command to the first token", (1,), lambda clients, part: []),
        Workload("chat", "prompts of a line to 600 tokens, answers of 8 to 64", (1, 8, 32, 64), _chat),
        Workload("long-prompt", "prompts of 900 to 1600 tokens, answers of 8 to 16", (1, 8), _long_prompt),
        Workload("shared-prompt", "many users with one system prompt of 800 tokens", (8, 32), _shared_prompt),
        Workload(
            "multi-turn",
            "conversations of 8 turns about a text of 1100 tokens, answers of 16",
            (1, 8),
            _multi_turn,
            variants=("gridwork-no-prefix-cache",),
        ),
        Workload(
            "long-conversation",
            "conversations of 8 turns about a text of 6000 tokens, answers of 16",
            (1,),
            _long_conversation,
            peers=False,
            variants=("gridwork-no-prefix-cache",),
        ),
        Workload(
            "offline",
            "a list of requests with answers of 8 to 128 tokens, in batches",
            (4, 8, 16, 32, OFFLINE_REQUESTS),
            _offline,
            variants=("generate",),
        ),
        Workload(
            "decode",
            "answers of 64 tokens to one line",
            (1,),
            _decode,
            peers=False,
            variants=("gridwork-int8", "gridwork-speculate"),
        ),
        Workload(
            "context",
            "32 tokens after prompts of 128 to 8k tokens",
            (128, 512, 1024, 2048, 4096, 7800),
            _context,
            peers=False,
        ),
        Workload(
            "structured",
            "answers of 64 tokens that follow a JSON schema",
            (1, 32),
            _constrained,
            peer_prefixes=VLLM,
            models=SMALL,
        ),
        Workload(
            "unstructured", "the same without a schema", (1, 32, 64), _unconstrained, peer_prefixes=VLLM, models=SMALL
        ),
        Workload(
            "structured-beside",
            "answers without a schema, beside as many with one",
            (64,),
            _beside_constrained,
            peer_prefixes=VLLM,
            models=SMALL,
        ),
        Workload(
            "new-schema", "a schema that is new with each request", (1,), _new_schemas, peer_prefixes=VLLM, models=SMALL
        ),
        Workload(
            "no-schema", "the same requests without a schema", (1,), _no_schemas, peer_prefixes=VLLM, models=SMALL
        ),
        Workload(
            "families",
            "prompts of 128 tokens, answers of 64, for models of many families",
            (1, 8, 32),
            _families,
            models=tuple(FAMILIES),
        ),
        Workload("memory", "25 prompts of 1750 tokens at once, with 1 GiB of cache", (25,), _memory, models=SMALL),
    )
}
