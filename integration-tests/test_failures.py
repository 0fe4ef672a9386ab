"""A request that makes its model fail harms no other request."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Answer
from support.models import CROWD_TOKENS, KILL, NAN, RAISE, RAISE_IN_A_CROWD
from support.paths import LONG
from support.server import Server, wait_for


@pytest.fixture(scope="module")
def server(trap: Path) -> Iterator[Server]:
    with Server("--model-id", trap, "--dtype", "float32", "--trust-remote-code") as running:
        yield running


def check_idle(server: Server) -> None:
    wait_for(lambda: server.client.metric("gridwork_cache_blocks_used") == 0, 10, "no block is in use when idle")
    assert server.client.metric("gridwork_scheduler_integrity_violations_total") == 0


class Bystanders:
    """Three streams during a failure, which must equal streams without one."""

    PROMPTS = ("The boats are past", "Count the seeds", "A good map")
    NUM_TOKENS = 200

    def __init__(self, server: Server) -> None:
        self.server = server
        self.alone = [server.client.generate(prompt, max_new_tokens=self.NUM_TOKENS) for prompt in self.PROMPTS]
        self.answers: list[Answer | BaseException | None] = [None] * len(self.PROMPTS)

    def __enter__(self) -> "Bystanders":
        before = self.server.client.metric("gridwork_generated_tokens_total")
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(len(self.PROMPTS))]
        for thread in self.threads:
            thread.start()
        wait_for(
            lambda: self.server.client.metric("gridwork_generated_tokens_total") > before + 15, 30, "the streams run"
        )
        return self

    def _run(self, index: int) -> None:
        try:
            self.answers[index] = self.server.client.generate_stream(
                self.PROMPTS[index], max_new_tokens=self.NUM_TOKENS
            )
        except BaseException as error:
            self.answers[index] = error

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for thread in self.threads:
            thread.join()
        if kind is None:
            for answer, alone in zip(self.answers, self.alone, strict=True):
                assert isinstance(answer, Answer), answer
                assert answer.token_ids == alone.token_ids
                assert answer.text == alone.text


def error_of(server: Server, word: str) -> str:
    """The error of a request with this word in its prompt, which must fail with 424."""
    response = server.client.post("/generate", {"inputs": f"bad {word} day", "parameters": {"max_new_tokens": 4}})
    assert response.status_code == 424, response.text
    error: str = response.json()["error"]
    return error


def test_nan_logits_fail_only_their_own_request(server: Server) -> None:
    restarts = server.client.metric("gridwork_shard_restarts_total")
    with Bystanders(server):
        for _ in range(3):
            assert "NaN" in error_of(server, NAN)
            response = server.client.post("/v1/completions", {"prompt": f"bad {NAN} day", "max_tokens": 4})
            assert response.status_code == 500
            assert "NaN" in response.json()["error"]["message"]
    assert server.client.metric("gridwork_shard_restarts_total") == restarts
    check_idle(server)


def test_blocks_that_held_nan_harm_no_later_sequence(server: Server) -> None:
    """Blocks are reused without being cleared; a sequence must not read beyond its own tokens."""
    prompts = [f"{word} boat" for word in ("red", "green", "blue", "old")]
    clean = [server.client.generate(prompt, max_new_tokens=20).token_ids for prompt in prompts]
    body = {"inputs": f"{NAN} " + "boat " * 200, "parameters": {"max_new_tokens": 2}}
    assert {r.status_code for r in server.client.together([lambda: server.client.post("/generate", body)] * 6)} == {424}
    assert [server.client.generate(prompt, max_new_tokens=20).token_ids for prompt in prompts] == clean


def test_a_failure_inside_a_stream_is_an_event(server: Server) -> None:
    """When the model fails after the 200, the stream ends with an error that OpenAI clients understand."""
    body = {"prompt": f"bad {NAN} day", "max_tokens": 4, "stream": True}
    with server.client.http.stream("POST", "/v1/completions", json=body) as response:
        text = b"".join(response.iter_raw()).decode()
    assert "NaN" in text
    assert '"error"' in text


def check_exceptions(server: Server) -> None:
    """A request whose steps raise fails alone, with the exception. A request that raises only in large batches does not
    fail. The shard continues."""
    restarts = server.client.metric("gridwork_shard_restarts_total")
    (raises,) = server.client.ok("/tokenize", {"inputs": RAISE_IN_A_CROWD})
    prompt = [raises["id"], *[300] * (CROWD_TOKENS - 2)]
    crowd = {"prompt": prompt, "max_tokens": 30, "temperature": 0}
    alone = server.client.ok("/v1/completions", crowd)
    with Bystanders(server):
        for _ in range(2):
            assert "RuntimeError: DefaultCPUAllocator: can't allocate memory" in error_of(server, RAISE)
            assert server.client.ok("/v1/completions", crowd)["choices"] == alone["choices"]
    assert server.client.metric("gridwork_shard_restarts_total") == restarts
    check_idle(server)


def test_a_request_whose_steps_raise_fails_alone(server: Server) -> None:
    check_exceptions(server)
    assert "each is computed again, alone" in server.log()


def test_a_request_whose_steps_raise_fails_alone_on_the_batched_path(trap: Path) -> None:
    with Server(
        *("--model-id", trap, "--dtype", "float32", "--trust-remote-code", "--model-impl", "batched")
    ) as server:
        check_exceptions(server)


def test_a_failing_stream_ends_with_the_exception(server: Server) -> None:
    body = {"inputs": f"bad {RAISE} day", "parameters": {"max_new_tokens": 4}}
    events = list(server.client.stream("/generate_stream", body))
    assert "can't allocate memory" in events[-1]["error"]


@pytest.mark.skipif(not LONG, reason="three restarts of two shards")
def test_an_exception_over_two_shards_restarts_them(trap: Path) -> None:
    with Server(*("--model-id", trap, "--dtype", "float32", "--trust-remote-code", "--num-shard", "2")) as server:
        with Bystanders(server):
            body = {"inputs": f"bad {RAISE} day", "parameters": {"max_new_tokens": 4}}
            response = server.client.post("/generate", body)
            assert response.status_code == 424, response.text
            assert "died" in response.json()["error"]
        check_idle(server)


def test_a_request_that_kills_shards_fails_alone(server: Server) -> None:
    with Bystanders(server):
        response = server.client.post("/generate", {"inputs": f"the {KILL} word", "parameters": {"max_new_tokens": 4}})
        assert response.status_code == 424, response.text
        error = response.json()["error"]
        assert "shard" in error and "died" in error
    assert server.client.metric("gridwork_shard_restarts_total") >= 2
    assert "the trap of this model's custom code has closed" in server.log()
    check_idle(server)


def test_the_server_is_healthy_again_afterwards(server: Server) -> None:
    assert server.client.get("/health").status_code == 200
    assert server.client.generate("The boats", max_new_tokens=4).token_ids
