"""Rotary frequencies that depend on a sequence's length: tokens equal those of `generate()` for each sequence alone.

The limit is 64 tokens. Prompts and answers lie below it, beyond it, and cross it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import LLAMA_LIKE, cache_bytes_per_token, tokenizer_file
from support.reference import greedy
from support.server import Server, wait_for
from support.text import text_of_tokens
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PretrainedConfig

LIMIT = 64

_SIZES: dict[str, Any] = {
    **LLAMA_LIKE,
    "eos_token_id": None,
    "initializer_range": 0.2,
}

_LONG_FACTORS = [1, 1.5, 2, 3, 5, 8, 12, 20]


def _longrope(limit: int) -> Callable[[], PretrainedConfig]:
    return lambda: Phi3Config(  # type: ignore[call-arg]
        **_SIZES | {"max_position_embeddings": 2048},
        original_max_position_embeddings=limit,
        rope_scaling={"type": "longrope", "short_factor": [1] * 8, "long_factor": _LONG_FACTORS},
    )


MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    # A sequence is computed anew when it crosses the limit.
    "longrope": _longrope(LIMIT),
    "longrope-600": _longrope(600),
    # Computed keys stay; beyond the limit every length has its own frequencies.
    "dynamic": lambda: LlamaConfig(
        **_SIZES | {"max_position_embeddings": LIMIT},
        rope_parameters={"rope_type": "dynamic", "factor": 16.0, "rope_theta": 10000.0},
    ),
}


@dataclass(frozen=True)
class Case:
    """A prompt, the number of generated tokens, and their ids up to the first that rounding may change."""

    prompt: str
    max_new_tokens: int
    token_ids: list[int]


class Reference:
    """A tiny model, and answers of `generate()` with it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.tokenizer: Tokenizer = tokenizer_file(folder)
        torch.manual_seed(20)
        model = AutoModelForCausalLM.from_config(MODELS[name]()).float()
        model.save_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._cases: dict[tuple[str, int], Case] = {}

    def prompt(self, num_tokens: int, start: int = 0) -> str:
        """Ordinary text of `num_tokens` tokens."""
        return text_of_tokens(self.tokenizer, num_tokens, start)

    def beginning(self, prompt: str, num_tokens: int) -> str:
        """The text of a prompt's first tokens: `num_tokens`, or a few more where these are not a text."""
        ids = self.tokenizer.encode(prompt).ids
        for count in range(num_tokens, num_tokens + 8):
            text: str = self.tokenizer.decode(ids[:count])
            if self.tokenizer.encode(text).ids == ids[:count]:
                return text
        raise AssertionError("no cut of the prompt is a text")

    @torch.inference_mode()
    def case(self, prompt: str, max_new_tokens: int) -> Case:
        """Answers of a fresh copy of the model, since rotary embeddings remember the longest sequence so far."""
        if (prompt, max_new_tokens) not in self._cases:
            known, _ = greedy(copy.deepcopy(self._model), self.tokenizer.encode(prompt).ids, max_new_tokens)
            self._cases[prompt, max_new_tokens] = Case(prompt, max_new_tokens, known)
        return self._cases[prompt, max_new_tokens]

    def mixed(self) -> list[Case]:
        """Cases below, around, beyond and across the limit."""
        sizes = [(20, 30), (300, 80), (40, 60), (1, 90), (63, 4), (64, 4), (65, 4), (50, 14), (60, 40), (150, 20)]
        return [self.case(self.prompt(size, 97 * i), count) for i, (size, count) in enumerate(sizes)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            made[name] = Reference(name, tmp_path_factory.mktemp("scaled-rope") / f"tiny-{name}")
        return made[name]

    return get


def start(reference: Reference, *arguments: str | int) -> Server:
    return Server("--model-id", reference.folder, "--dtype", "float32", "--max-total-tokens", 1000, *arguments)


def check(server: Server, cases: list[Case]) -> None:
    """Sends all at once, every second one as a stream."""
    client = server.client
    ask = [client.generate, client.generate_stream]
    answers = client.together(
        [
            lambda case=case, i=i: ask[i % 2](case.prompt, max_new_tokens=case.max_new_tokens)
            for i, case in enumerate(cases)
        ]
    )
    for i, (answer, case) in enumerate(zip(answers, cases, strict=True)):
        known = len(case.token_ids)
        assert len(answer.token_ids) == case.max_new_tokens
        assert answer.token_ids[:known] == case.token_ids, f"case {i} of {len(cases)}"


def check_idle(server: Server) -> None:
    wait_for(lambda: server.client.metric("gridwork_cache_blocks_used") == 0, 5, "no block is in use when idle")
    assert server.client.metric("gridwork_scheduler_integrity_violations_total") == 0


SERVERS: list[tuple[str, tuple[str | int, ...], str]] = [
    ("longrope", (), "paged"),
    ("longrope", ("--disable-fusion", "--speculate", 4), "paged"),
    ("longrope", ("--num-shard", 2), "paged"),
    ("longrope", ("--model-impl", "batched"), "batched"),
    ("dynamic", ("--speculate", 4, "--max-batch-prefill-tokens", 64), "paged"),
    ("dynamic", ("--model-impl", "batched"), "batched"),
]


@pytest.mark.parametrize(("name", "arguments", "path"), SERVERS)
def test_tokens_equal_those_of_generate_beside_others(
    name: str, arguments: tuple[str | int, ...], path: str, reference: Callable[[str], Reference]
) -> None:
    known = reference(name)
    expected = known.mixed()
    with start(known, *arguments) as server:
        info = server.client.get("/info").json()
        assert info["model_impl"] == path, info
        # First alone, which fills the prefix cache, then all at once, with some blocks from it.
        for case in expected[:4]:
            check(server, [case])
        check(server, expected)
        # Cached keys of the same tokens were rotated for a longer sequence.
        beginnings = [known.beginning(expected[1].prompt, size) for size in (20, 48, 70, 120)]
        check(server, [known.case(prompt, 40) for prompt in beginnings])
        check_idle(server)
        if path == "paged":
            again = server.client.generate(expected[1].prompt, max_new_tokens=1)
            assert again.token_ids == expected[1].token_ids[:1]
            assert server.client.metric("gridwork_cached_prompt_tokens_total") > 0


def test_several_choices_and_a_conversation_cross_the_limit(reference: Callable[[str], Reference]) -> None:
    known = reference("longrope")
    with start(known) as server:
        case = known.case(known.prompt(40, 11), 60)
        asked = {"prompt": case.prompt, "max_tokens": 60, "temperature": 0, "n": 3, "logprobs": 1}
        body = asked | {"model": server.client.get("/info").json()["model_id"]}
        texts = [choice["text"] for choice in server.client.ok("/v1/completions", body)["choices"]]
        assert len(set(texts)) == 1
        assert texts[0].startswith(known.tokenizer.decode(case.token_ids[:40]))
        check(server, [case] * 4)
        check_idle(server)


def test_a_prompt_beyond_600_tokens_in_pieces(reference: Callable[[str], Reference]) -> None:
    known = reference("longrope-600")
    cases = [known.case(known.prompt(size, 31 * size), 12) for size in (700, 590, 80)]
    with start(known, "--max-batch-prefill-tokens", 128) as server:
        check(server, cases[:1])
        check(server, cases)


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_preemptions_and_a_killed_shard_keep_tokens_exact(name: str, reference: Callable[[str], Reference]) -> None:
    known = reference(name)
    expected = known.mixed()
    room = 640 * cache_bytes_per_token(known.folder)
    with Server(
        *("--model-id", known.folder, "--dtype", "float32", "--max-total-tokens", 400),
        *("--kv-cache-memory", room, "--max-batch-prefill-tokens", 64),
    ) as server:
        long = [lambda: server.client.generate("A", max_new_tokens=300)] * 3
        server.client.together([*long, lambda: check(server, expected)])
        assert server.client.metric("gridwork_preemptions_total") > 0

        def kill() -> None:
            before = server.client.metric("gridwork_generated_tokens_total")
            goal = before + sum(case.max_new_tokens for case in expected) // 3
            wait_for(
                lambda: server.client.metric("gridwork_generated_tokens_total") > goal,
                60,
                "a third of the tokens",
                every_s=0.005,
            )
            server.shards()[-1].kill()

        server.client.together([kill, lambda: check(server, expected)])
        assert server.client.metric("gridwork_shard_restarts_total") > 0
        check_idle(server)
