"""Common prefixes of requests are computed once, without a change of the answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.client import Client
from support.models import cache_bytes_per_token
from support.reference import Case, cases
from support.server import Server, wait_for
from support.text import text_of_tokens
from test_exactness import SMOLLM2_LONGEST_ANSWER, ask, ask_together, check, check_idle
from tokenizers import Tokenizer

BLOCK_TOKENS = 16


@pytest.fixture(scope="module")
def expected(smollm2: Path) -> Sequence[Case]:
    """Prompts and their continuations by `generate()`."""
    return cases(smollm2, number=24, longest_answer=SMOLLM2_LONGEST_ANSWER)[::2]


@pytest.fixture(scope="module")
def server(smollm2: Path, expected: Sequence[Case]) -> Iterator[Server]:
    """Started after the references, which may take minutes."""
    with Server("--model-id", smollm2, "--dtype", "float32") as running:
        yield running


def prompt_of(folder: Path, num_tokens: int, start: int) -> str:
    return text_of_tokens(Tokenizer.from_file(str(folder / "tokenizer.json")), num_tokens, start=start)


def complete(client: Client, prompt: str, **more: object) -> tuple[str, int]:
    """The text, and how many tokens of the prompt were cached."""
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, **more}
    reply = client.ok("/v1/completions", body)
    return reply["choices"][0]["text"], reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_answers_with_and_without_the_cache_equal_those_of_transformers(
    server: Server, smollm2: Path, expected: Sequence[Case]
) -> None:
    assert server.client.get("/info").json()["prefix_cache"] is True
    for _ in range(2):
        check(ask_together(server, expected), expected, smollm2)
    again = [ask(server, case) for case in expected]
    check(again, expected, smollm2)
    for answer, case in zip(again, expected, strict=True):
        whole = (case.num_prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        assert answer.details["cached_tokens"] == whole
    check_idle(server)
    with Server("--model-id", smollm2, "--dtype", "float32", "--disable-prefix-cache") as plain:
        assert plain.client.get("/info").json()["prefix_cache"] is False
        for _ in range(2):
            answers = ask_together(plain, expected)
            check(answers, expected, smollm2)
            assert {answer.details["cached_tokens"] for answer in answers} == {0}
        assert plain.client.metric("gridwork_prefix_cache_blocks") == 0
        check_idle(plain)


def test_the_variable_disables_the_cache(smollm2: Path) -> None:
    with Server("--model-id", smollm2, env={"DISABLE_PREFIX_CACHE": "true"}) as plain:
        assert plain.client.get("/info").json()["prefix_cache"] is False


def test_usage_counts_cached_tokens_on_every_route(server: Server, smollm2: Path) -> None:
    client = server.client
    prompt = prompt_of(smollm2, 100, start=11_000)
    text, cached = complete(client, prompt)
    assert cached == 0
    assert complete(client, prompt) == (text, 96)
    assert complete(client, prompt, n=2, temperature=1)[1] == 96
    body = {"prompt": prompt, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}
    *_, last = client.stream("/v1/completions", body)
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 96}
    assert client.generate(prompt, max_new_tokens=2).details["cached_tokens"] == 96
    assert client.generate_stream(prompt, max_new_tokens=2).details["cached_tokens"] == 96


def test_a_conversation_reuses_its_answers(server: Server, smollm2: Path) -> None:
    messages = [{"role": "user", "content": prompt_of(smollm2, 200, start=12_000)}]
    prompt_tokens = answer_tokens = 0
    for _ in range(4):
        body = {"messages": messages, "max_tokens": 24, "temperature": 0}
        reply = server.client.ok("/v1/chat/completions", body)
        usage = reply["usage"]
        # All whole blocks of the previous turn; its last token was never computed.
        before = max(0, prompt_tokens + answer_tokens - 1)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached <= before
        assert cached >= prompt_tokens // BLOCK_TOKENS * BLOCK_TOKENS - BLOCK_TOKENS
        prompt_tokens, answer_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        messages.append(reply["choices"][0]["message"])
        messages.append({"role": "user", "content": "And then?"})


def test_salts_separate_prompts(server: Server, smollm2: Path) -> None:
    prompt = prompt_of(smollm2, 80, start=13_000)
    first = complete(server.client, prompt)
    assert first[1] == 0
    for salt in ("a", "b"):
        assert complete(server.client, prompt, cache_salt=salt) == (first[0], 0)
        assert complete(server.client, prompt, cache_salt=salt) == (first[0], 64)
    generated = server.client.generate(prompt, max_new_tokens=2, cache_salt="c")
    assert generated.details["cached_tokens"] == 0


@pytest.mark.parametrize("salt", ["", "x" * 513, 5, ["a"]])
def test_bad_salts_are_refused(server: Server, salt: object) -> None:
    body = {"prompt": "a", "max_tokens": 1, "cache_salt": salt}
    response = server.client.post("/v1/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "cache_salt"
    chat = {"messages": [{"role": "user", "content": "a"}], "cache_salt": salt}
    assert server.client.post("/v1/chat/completions", chat).status_code == 400
    response = server.client.post("/generate", {"inputs": "a", "parameters": {"cache_salt": salt}})
    assert response.status_code == 422
    assert "cache_salt" in response.json()["error"]


def test_prompts_with_log_probabilities_are_computed_whole(server: Server, smollm2: Path) -> None:
    prompt = prompt_of(smollm2, 60, start=14_000)
    answers = [server.client.generate(prompt, max_new_tokens=2, decoder_input_details=True) for _ in range(2)]
    for answer in answers:
        assert answer.details["cached_tokens"] == 0
        assert len(answer.details["prefill"]) == 60
        assert all(token["logprob"] is not None for token in answer.details["prefill"][1:])
    assert server.client.generate(prompt, max_new_tokens=2).details["cached_tokens"] == 48


def test_a_shared_system_prompt_is_computed_once(server: Server, smollm2: Path) -> None:
    client = server.client
    system = prompt_of(smollm2, 400, start=15_000)

    def computed() -> float:
        return client.metric("gridwork_prompt_tokens_total") - client.metric("gridwork_cached_prompt_tokens_total")

    before = computed()
    replies = client.together(
        [
            lambda i=i: client.ok(
                "/v1/chat/completions",
                {
                    "messages": [
                        {"role": "system", "content": system},
                        {"role": "user", "content": f"Tell me about the number {i}."},
                    ],
                    "max_tokens": 4,
                    "temperature": 0,
                },
            )
            for i in range(16)
        ]
    )
    lengths = [reply["usage"]["prompt_tokens"] for reply in replies]
    assert min(lengths) > 400
    # The whole first prompt; of the others their own part and less than a block of the shared part.
    own = max(lengths) - 400 + BLOCK_TOKENS
    assert computed() - before <= max(lengths) + 15 * own
    check_idle(server)


def test_answers_stay_exact_with_evictions_and_preemptions(smollm2: Path, expected: Sequence[Case]) -> None:
    """Prompts of 600 tokens go through a cache of 704 tokens."""
    with Server(
        *("--model-id", smollm2, "--dtype", "float32", "--max-total-tokens", 640),
        *("--kv-cache-memory", 704 * cache_bytes_per_token(smollm2)),
    ) as server:
        client = server.client
        long = [lambda i=i: client.generate("ABCDEF"[i], max_new_tokens=150, ignore_eos=True) for i in range(6)]
        for _ in range(2):
            answers = client.together(long + [lambda case=case: ask(server, case) for case in expected])
            check(answers[len(long) :], expected, smollm2)
        assert client.metric("gridwork_preemptions_total") > 0
        assert client.metric("gridwork_prefix_cache_evicted_blocks_total") > 0
        assert client.metric("gridwork_prefix_cache_hit_tokens_total") > 0
        check_idle(server)


def test_a_restarted_shard_has_an_empty_cache(smollm2: Path) -> None:
    with Server("--model-id", smollm2, "--dtype", "float32") as server:
        prompt = prompt_of(smollm2, 100, start=16_000)
        text, _ = complete(server.client, prompt)
        assert complete(server.client, prompt) == (text, 96)
        server.shards()[0].kill()
        wait_for(lambda: server.client.metric("gridwork_shard_restarts_total") > 0, 30, "the loss is noticed")
        assert complete(server.client, prompt) == (text, 0)
        assert complete(server.client, prompt) == (text, 96)
        check_idle(server)
