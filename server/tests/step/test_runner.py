"""The runner gives the tokens of Transformers, however sequences are batched, chunked and preempted."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gridwork_kernels import cpu_attention
from gridwork_kernels.attention_choice import EVERYWHERE
from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.errors import LimitError

from .. import models
from ..driver import sampling
from ..runners import SizedRunner, driver_for, load_runner

LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=100)
PROMPTS = models.prompts([23, 1, 12, 5])
COUNT = 14


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Function from an architecture's name to a folder with such a model."""
    return functools.cache(lambda name: models.save(name, tmp_path_factory.mktemp("models") / name))


@pytest.fixture(scope="module")
def expected(folders: Any) -> Any:
    """Function from an architecture's name to the greedy continuations of PROMPTS."""

    @functools.cache
    def generate(name: str) -> list[list[int]]:
        model = models.plain(folders(name))
        return [models.greedy(model, prompt, COUNT) for prompt in PROMPTS]

    return generate


def runner_for(folder: Path, limits: pb.WarmupRequest = LIMITS, **settings: Any) -> SizedRunner:
    """Makes a runner in float32 that has been warmed up."""
    return load_runner(folder, limits, **settings)


def generate_together(runner: SizedRunner, **settings: Any) -> list[list[int]]:
    """Generates continuations of PROMPTS, in one batch."""
    driver = driver_for(runner, **settings)
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS]
    results = driver.finish()
    return [results[name] for name in names]


@pytest.mark.parametrize("attention", ["cpu", *EVERYWHERE])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_greedy_tokens_equal_those_of_transformers(name: str, attention: str, folders: Any, expected: Any) -> None:
    if attention == "cpu" and not cpu_attention.supports(torch.float32):
        pytest.skip("no compiled kernels for this CPU")
    runner = runner_for(folders(name), attention=attention)
    assert runner.path.attention_name == attention
    for prompt, tokens in zip(PROMPTS, expected(name), strict=True):
        alone = driver_for(runner)
        number = alone.add(prompt, COUNT)
        assert alone.finish()[number] == tokens
    assert generate_together(runner) == expected(name)
    assert generate_together(runner, chunk=5) == expected(name)


def test_sequences_join_and_leave_a_running_batch(folders: Any, expected: Any) -> None:
    runner = runner_for(folders("llama"))
    driver = driver_for(runner, chunk=5, max_sequences=5)
    names = []
    for prompt, count in zip(PROMPTS, (COUNT, 2, 7, COUNT), strict=True):
        names.append((driver.add(prompt, count), count))
        driver.step()
        driver.step()
    results = driver.finish()
    for (name, count), tokens in zip(names, expected("llama"), strict=True):
        assert results[name] == tokens[:count]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_preempted_sequence_continues_with_the_same_tokens(name: str, folders: Any, expected: Any) -> None:
    driver = driver_for(runner_for(folders(name)), chunk=6)
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS]
    for step, victim in enumerate([0, 3, 2, 3, 2, 1, 0, 0]):
        driver.step()
        assert driver.running[victim].tokens[: len(PROMPTS[victim])] == PROMPTS[victim], step
        driver.preempt(names[victim])
    results = driver.finish()
    assert [results[number] for number in names] == expected(name)


def test_a_seeded_sequence_draws_the_same_tokens_alone_in_a_batch_and_after_a_preemption(folders: Any) -> None:
    runner = runner_for(folders("llama"))
    settings = sampling(seed=7, temperature=1.5, repetition_penalty=1.3, top_k=40)

    def draw(neighbours: int, preemptions: int, **options: Any) -> list[int]:
        driver = driver_for(runner, **options)
        number = driver.add(PROMPTS[2], COUNT, settings)
        for seed in range(neighbours):
            driver.add(PROMPTS[0], COUNT, sampling(seed=seed))
        for _ in range(preemptions):
            driver.step()
            driver.step()
            driver.preempt(number)
        return driver.finish()[number]

    alone = draw(0, 0)
    assert draw(3, 0, chunk=5) == alone
    assert draw(2, 4) == alone
    settings.seed = 8
    assert draw(0, 0) != alone


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_sequence_with_nan_logits_fails_alone_and_leaves_nothing_behind(
    attention: str, folders: Any, expected: Any
) -> None:
    runner = runner_for(folders("llama"), attention=attention)
    used = {token for tokens in [*PROMPTS, *expected("llama")] for token in tokens}
    poison = next(token for token in range(models.VOCAB) if token not in used)
    runner.loaded.model.get_input_embeddings().weight[poison] = float("nan")  # type: ignore[operator, union-attr]
    driver = driver_for(runner, max_sequences=8)
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS[:2]]
    bad = driver.add([5, poison, 6, 7, 8, 9], COUNT)
    driver.step()
    assert driver.failures[bad].kind == pb.SequenceFailure.KIND_NAN_LOGITS
    # Other sequences get the blocks that the failed one wrote NaN into.
    driver.preempt(names[0])
    for _ in range(10):
        driver.preempt(names[1])
        driver.step()
    names += [driver.add(prompt, COUNT) for prompt in PROMPTS[2:]]
    results = driver.finish()
    assert [results[name] for name in names] == expected("llama")
    assert list(driver.failures) == [bad]
    assert results[bad] == []


@pytest.mark.parametrize(
    "settings",
    [{}, {"fuse": False}, {"attention": "reference"}, {"model_impl": "batched"}, {"model_impl": "solo"}],
    ids=str,
)
@pytest.mark.parametrize("token", [models.VOCAB, 2**31 - 1, 2**32 - 1])
def test_a_token_outside_the_vocabulary_fails_its_sequence_alone(
    token: int, settings: dict[str, Any], folders: Any, expected: Any
) -> None:
    driver = driver_for(runner_for(folders("llama"), **settings), chunk=2)
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS[:2]]
    driver.step()
    bad = [driver.add(prompt, COUNT) for prompt in ([token], [5, 6, token, 7, 8])]
    names += [driver.add(prompt, COUNT) for prompt in PROMPTS[2:]]
    results = driver.finish()
    assert [results[name] for name in names] == expected("llama")
    assert list(driver.failures) == bad
    for name in bad:
        assert f"token {token} is not in the vocabulary" in driver.failures[name].message
        assert f"{models.VOCAB} rows" in driver.failures[name].message


def test_a_sampled_token_without_an_embedding_fails_its_sequence_alone(folders: Any, expected: Any) -> None:
    whole = runner_for(folders("llama"))
    tokens = expected("llama")
    rows = max(max(answer) for answer in tokens)
    assert rows > max(max(prompt) for prompt in PROMPTS)
    runner = SizedRunner(replace(whole.loaded, input_vocab_size=rows), whole.config, whole.group)
    runner.warm_up(LIMITS)
    driver = driver_for(runner)
    names = [driver.add(prompt, COUNT) for prompt in PROMPTS]
    results = driver.finish()
    for name, answer in zip(names, tokens, strict=True):
        end = answer.index(rows) + 1 if rows in answer else COUNT
        assert results[name] == answer[:end]
        assert (name in driver.failures) == (end < COUNT)
    assert driver.failures


@pytest.mark.parametrize("settings", [{}, {"model_impl": "batched"}], ids=str)
def test_after_an_exception_the_sequences_of_its_step_can_be_computed_again(
    settings: dict[str, Any], folders: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runner_for(folders("llama"), **settings)
    tokens = expected("llama")
    # The second sequence continues after tokens that it had generated.
    parts = [(PROMPTS[0], tokens[0]), (PROMPTS[2] + tokens[2][:3], tokens[2][3:])]
    step = pb.Step(id=1, sequence_ids=[0, 1], num_tokens=[len(tokens) for tokens, _ in parts])
    for id, (known, _) in enumerate(parts):
        step.admitted.add(id=id, token_ids=known, num_prompt_tokens=len(known) - 3 * id, sampling=sampling())
        step.num_new_blocks.append(6)
    step.new_blocks.extend(range(12))

    def broken(*_arguments: Any) -> Any:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(runner.path, "forward", broken)
        with pytest.raises(RuntimeError):
            runner.run(step)
    result = runner.fail(step, "RuntimeError: no memory")
    assert (result.error, list(result.token_ids), list(result.failures)) == ("RuntimeError: no memory", [], [])
    # A step that was sent before the failure was known.
    next_result = runner.run(pb.Step(id=2, sequence_ids=[0, 1], num_tokens=[1, 1], num_new_blocks=[0, 0]))
    assert [failure.sequence_id for failure in next_result.failures] == [0, 1] and not next_result.token_ids
    step.id = 3
    step.released.extend([0, 1])
    assert list(runner.run(step).token_ids) == [answer[0] for _, answer in parts]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("chunk", [1000, 5])
def test_prompt_logprobs_equal_those_of_a_plain_forward(name: str, chunk: int, folders: Any) -> None:
    driver = driver_for(runner_for(folders(name)), chunk=chunk)
    driver.add(PROMPTS[2], COUNT)
    asked = driver.add(PROMPTS[0], 2, prompt_logprobs=True)
    # The last five tokens count as generated.
    resumed = driver.add(PROMPTS[0], 7, prompt_logprobs=True, num_prompt=len(PROMPTS[0]) - 5)
    driver.finish()
    with torch.inference_mode():
        logits = models.plain(folders(name))(torch.tensor([PROMPTS[0]])).logits[0]
    logprobs = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(PROMPTS[0])[1:, None])[:, 0]
    for number, count in ((asked, len(PROMPTS[0])), (resumed, len(PROMPTS[0]) - 5)):
        known = driver.prompt_logprobs[number]
        assert list(known) == list(range(1, count))
        torch.testing.assert_close(torch.tensor(list(known.values())), logprobs[: count - 1], rtol=1e-4, atol=1e-4)
    assert set(driver.prompt_logprobs) == {asked, resumed}


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("chunk", [1000, 5])
def test_the_most_likely_tokens_of_a_prompt_equal_those_of_a_plain_forward(name: str, chunk: int, folders: Any) -> None:
    driver = driver_for(runner_for(folders(name)), chunk=chunk)
    driver.add(PROMPTS[2], COUNT, prompt_logprobs=True)
    asked = driver.add(PROMPTS[0], 2, prompt_logprobs=True, prompt_top_n=3)
    driver.finish()
    with torch.inference_mode():
        logits = models.plain(folders(name))(torch.tensor([PROMPTS[0]])).logits[0]
    values, ids = logits.log_softmax(-1)[:-1].topk(3)
    tops = driver.prompt_tops[asked]
    assert list(tops) == list(range(1, len(PROMPTS[0])))
    assert [list(top) for top in tops.values()] == ids.tolist()
    known = torch.tensor([list(top.values()) for top in tops.values()])
    torch.testing.assert_close(known, values, rtol=1e-4, atol=1e-4)
    assert [number for number, top in driver.prompt_tops.items() if top] == [asked]


def test_a_sequence_as_long_as_the_limit_has_room_for_the_surplus_token(folders: Any) -> None:
    """A surplus step may be in flight when the last token is sampled."""
    prompt = models.prompts([90])[0]
    driver = driver_for(runner_for(folders("llama")))
    number = driver.add(prompt, 11)
    assert driver.finish()[number] == models.greedy(models.plain(folders("llama")), prompt, 11)


@pytest.mark.parametrize(
    ("limits", "memory", "words"),
    [
        ({"max_total_tokens": 5000}, 2**20, ["--max-total-tokens", "--kv-cache-memory", "5000"]),
        ({}, 100, ["--kv-cache-memory", "4 tokens"]),
        ({"max_sequences": 0}, 2**20, ["at least 1"]),
    ],
)
def test_limits_that_cannot_be_met_are_refused(
    limits: dict[str, int], memory: int, words: list[str], folders: Any
) -> None:
    changed = pb.WarmupRequest()
    changed.CopyFrom(LIMITS)
    for name, value in limits.items():
        setattr(changed, name, value)
    with pytest.raises(LimitError) as error:
        runner_for(folders("llama"), changed, kv_cache_memory_bytes=memory)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_blocks_before_a_window_are_freed(name: str, folders: Any) -> None:
    runner = runner_for(folders(name))
    path: Any = runner.path
    blocks = path._window_blocks
    assert blocks.num_blocks < runner.num_blocks
    driver = driver_for(runner, chunk=5)
    driver.add(models.prompts([60])[0], 20)
    most = 0
    while driver.running:
        driver.step()
        most = max(most, int(np.count_nonzero(blocks.tables != blocks.null_block)))
    # A window of 9 tokens lies in 3 or 4 blocks of 4, while the whole sequence takes 20.
    assert most in (3, 4)
    runner.run(pb.Step(id=99, released=[sequence.id for sequence in driver.finished.values()]))
    assert (blocks.tables == blocks.null_block).all()


def test_layers_with_windows_leave_memory_for_more_tokens(folders: Any) -> None:
    limits = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=16, max_sequences=2, max_total_tokens=8000)
    runner = runner_for(folders("gemma3"), limits, kv_cache_memory_bytes=2**22)
    needs = runner.path.needs
    assert (needs.window_tokens, needs.window_bytes_per_token) == (9, needs.bytes_per_token * 2 // 3)
    # One layer of three has full attention: nearly three times as many tokens fit as if all had.
    if_all_did = 2**22 // (needs.bytes_per_token * limits.block_size_tokens)
    assert runner.num_blocks > 2 * if_all_did
