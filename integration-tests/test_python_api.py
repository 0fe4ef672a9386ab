"""The Python API: answers equal those of `generate()` and of HTTP, and what is wrong is refused by name."""

import asyncio
import itertools
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gridwork import LLM, AsyncLLM, GridworkError, InvalidRequest, ModelError, SamplingParams, TokensPrompt
from support import encoders, reference
from support.paths import GRIDWORK, LONG
from support.server import Server, wait_for

os.environ.setdefault("GRIDWORK_BIN", str(GRIDWORK))

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM(smollm2, dtype="float32") as made:
        yield made


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> Iterator[LLM]:
    with LLM(minilm) as made:
        yield made


# --- equal answers ------------------------------------------------------------------------------------------------


def test_greedy_tokens_equal_those_of_generate(llm: LLM, smollm2: Path) -> None:
    cases = reference.cases(smollm2)
    params = [SamplingParams(temperature=0, max_tokens=case.max_new_tokens) for case in cases]
    outputs = llm.generate([case.prompt for case in cases], params, use_tqdm=False)
    assert [tuple(output.outputs[0].token_ids) for output in outputs] == [case.token_ids for case in cases]
    assert [len(output.prompt_token_ids) for output in outputs] == [case.num_prompt_tokens for case in cases]
    # The same prompts as token ids.
    again = llm.generate(
        [TokensPrompt(prompt_token_ids=output.prompt_token_ids) for output in outputs], params, use_tqdm=False
    )
    assert [output.outputs[0].token_ids for output in again] == [output.outputs[0].token_ids for output in outputs]


def test_sampled_answers_equal_those_over_http(llm: LLM, smollm2_server: Server) -> None:
    prompts = [f"Once upon a time there was a number {number}," for number in range(50)]
    params = [SamplingParams(n=2, temperature=1.2, top_p=0.9, seed=seed, max_tokens=12) for seed in range(50)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    with LLM(smollm2_server.url) as remote:
        others = remote.generate(prompts, params, use_tqdm=False)
    texts = [[choice.text for choice in output.outputs] for output in outputs]
    assert texts == [[choice.text for choice in output.outputs] for output in others]
    body = {"prompt": prompts[7], "n": 2, "temperature": 1.2, "top_p": 0.9, "seed": 7, "max_tokens": 12}
    answer = smollm2_server.client.ok("/v1/completions", body)
    assert texts[7] == [choice["text"] for choice in answer["choices"]]
    assert len({*texts[0]}) == 2


def test_a_seed_of_all_requests_gives_the_same_texts_again(smollm2_server: Server) -> None:
    prompts = ["Once upon a time", "Once upon a time", "There was a"]
    params = SamplingParams(temperature=1.3, max_tokens=12)

    def texts(seed: int, sampling_params: Any) -> list[str]:
        with LLM(smollm2_server.url, seed=seed) as remote:
            return [output.text for output in remote.generate(prompts, sampling_params, use_tqdm=False)]

    first = texts(7, params)
    assert texts(7, params) == first
    assert texts(8, params) != first
    # Each request has its own, and those with a seed keep it.
    assert first[0] != first[1]
    own = [SamplingParams(temperature=1.3, max_tokens=12, seed=3)] * 3
    assert texts(7, own) == texts(8, own)
    assert texts(7, None) == texts(7, None)
    with pytest.raises(InvalidRequest, match="`seed` is of type str"):
        LLM(smollm2_server.url, seed="7")


def test_chats_answer_as_transformers_does(llm: LLM, smollm2: Path) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text, num_prompt_tokens = reference.chat_answer(smollm2, messages, 20)
    [output] = llm.chat(messages, SamplingParams(temperature=0, max_tokens=20), use_tqdm=False)
    assert output.text == text and len(output.prompt_token_ids) == num_prompt_tokens
    assert output.outputs[0].finish_reason == "stop"
    # A limit that is left to the context.
    both = llm.chat([messages, messages], SamplingParams(temperature=0, max_tokens=None), use_tqdm=False)
    assert [each.text for each in both] == [text, text]


def test_a_forced_call_of_a_tool_is_in_the_message(llm: LLM) -> None:
    city = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
    # Other keys could go on until the limit of tokens.
    parameters = city | {"additionalProperties": False}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    messages = [{"role": "user", "content": "How is the weather in Paris?"}]
    options: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    params = SamplingParams(temperature=0, max_tokens=100)
    [output] = llm.chat(messages, params, use_tqdm=False, **options)
    message = output.outputs[0].message
    assert message is not None and message["tool_calls"][0]["function"]["name"] == "weather"
    assert output.outputs[0].finish_reason == "tool_calls"
    *_, last = llm.chat(messages, params, stream=True, **options)
    streamed = last.outputs[0].message
    assert streamed is not None
    assert streamed["tool_calls"][0]["function"] == message["tool_calls"][0]["function"]


def test_streams_grow_to_the_whole_answer(llm: LLM) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=2)
    whole = llm.generate(prompts, params, use_tqdm=False)
    pieces = list(llm.generate(prompts, params, stream=True))
    assert len(pieces) > 8
    for expected in whole:
        of_prompt = [piece for piece in pieces if piece.prompt == expected.prompt]
        last, wanted = of_prompt[-1].outputs[0], expected.outputs[0]
        assert [piece.finished for piece in of_prompt] == [False] * (len(of_prompt) - 1) + [True]
        assert "".join(piece.outputs[0].delta for piece in of_prompt) == last.text == wanted.text
        assert last.token_ids == wanted.token_ids and last.logprobs == wanted.logprobs
        assert of_prompt[-1].prompt_token_ids == expected.prompt_token_ids
        times = of_prompt[-1].metrics
        assert times is not None and times.first_token_time is not None and times.first_token_time > times.arrival_time


def test_log_probabilities_are_by_token_id(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=0)
    [output] = llm.generate("The capital of France is", params, use_tqdm=False)
    [choice] = output.outputs
    assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids) == 4
    for token, position in zip(choice.token_ids, choice.logprobs, strict=True):
        assert len(position) == 3 and position[token].rank == 1
        assert position[token].logprob == max(each.logprob for each in position.values())
    assert "".join(p[t].decoded_token for t, p in zip(choice.token_ids, choice.logprobs, strict=True)) == choice.text
    summed = sum(p[t].logprob for t, p in zip(choice.token_ids, choice.logprobs, strict=True))
    assert choice.cumulative_logprob == pytest.approx(summed)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_structured_outputs_hold_the_answer(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, structured_outputs={"choice": ["yes", "no"]})
    outputs = llm.generate(["Is water wet?"] * 5, params, use_tqdm=False)
    assert {output.text for output in outputs} <= {"yes", "no"}


# --- many prompts -------------------------------------------------------------------------------------------------


def test_one_bad_prompt_fails_alone_when_asked(llm: LLM) -> None:
    prompts: list[Any] = [f"Number {number} is" for number in range(100)]
    prompts[17] = [10**9]
    prompts[50] = "word " * 20_000
    prompts[60] = 5.0
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False, on_error="return")
    failed = {number: output.error for number, output in enumerate(outputs) if output.error is not None}
    assert sorted(failed) == [17, 50, 60]
    assert all(isinstance(error, InvalidRequest) for error in failed.values())
    error = failed[50]
    assert isinstance(error, InvalidRequest) and error.code == "context_length_exceeded" and error.field == "prompt"
    assert [output.prompt for output in outputs[:10]] == prompts[:10]
    with pytest.raises(InvalidRequest):
        print(outputs[17].text)
    with pytest.raises(InvalidRequest, match="maximum context length"):
        llm.generate(prompts[:17] + prompts[18:], GREEDY, use_tqdm=False)
    # A failed start leaves nothing behind.
    assert llm.generate(prompts[0], GREEDY, use_tqdm=False)[0].text == outputs[0].text


def test_an_iterator_of_prompts_streams_through_in_bounded_memory(tiny: Callable[[str], Path]) -> None:
    number = 100_000 if LONG else 5_000
    read = 0

    def prompts() -> Iterator[list[int]]:
        nonlocal read
        for read in range(1, number + 1):
            yield [read % 100 + 3, 7, 9]

    with LLM(tiny("llama"), dtype="float32", max_batch_size=64) as llm:
        results = llm.generate(prompts(), SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        most_ahead = peak_kb = 0
        for taken, output in enumerate(results, 1):
            assert output.prompt_token_ids[0] == taken % 100 + 3
            most_ahead = max(most_ahead, read - taken)
            if taken == number // 2:
                peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert taken == number
    assert most_ahead <= 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak_kb + 30_000


def test_leaving_a_stream_frees_its_request(llm: LLM, smollm2_server: Server) -> None:
    client = smollm2_server.client
    long = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)

    def idle() -> bool:
        return client.metric("gridwork_running_sequences") == 0 and client.metric("gridwork_queue_size") == 0

    with LLM(smollm2_server.url) as remote:
        stream = remote.generate("Once", long, stream=True)
        first = next(stream)
        assert not first.finished and not idle()
        stream.close()  # type: ignore[attr-defined]
        wait_for(idle, 20, "the request has ended")

    async def main() -> None:
        async with AsyncLLM(smollm2_server.url) as remote:
            task = asyncio.ensure_future(remote.generate(["Once", "Twice"], long))
            while idle():
                await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while not idle():
                await asyncio.sleep(0.02)
            assert (await remote.generate("The capital of France is", GREEDY))[0].text.startswith(" Paris")

    asyncio.run(asyncio.wait_for(main(), 60))


def test_the_twins_give_the_same(llm: LLM, smollm2: Path) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    expected = [output.text for output in llm.generate(prompts, GREEDY, use_tqdm=False)]
    messages = [{"role": "user", "content": "Hi"}]
    chatted = llm.chat(messages, GREEDY, use_tqdm=False)[0].text

    async def main() -> None:
        # A running loop, as in a notebook, keeps nobody from using LLM either.
        assert [output.text for output in llm.generate(prompts, GREEDY, use_tqdm=False)] == expected
        async with AsyncLLM(smollm2, dtype="float32") as twin:
            outputs, chats = await asyncio.gather(twin.generate(prompts, GREEDY), twin.chat(messages, GREEDY))
            assert [output.text for output in outputs] == expected and chats[0].text == chatted
            pieces = [piece async for piece in twin.generate(prompts[0], GREEDY, stream=True)]
            assert pieces[-1].text == expected[0] and len(pieces) > 3
            each = [output.text async for output in twin.generate_each(itertools.islice(prompts, 2), GREEDY)]
            assert each == expected

    asyncio.run(main())


# --- encoders -----------------------------------------------------------------------------------------------------


def test_vectors_equal_those_of_transformers(encoder: LLM, minilm: Path) -> None:
    texts = ["A cat sits on the mat.", "Interest rates rose again in March."]
    plain = encoders.Reference(minilm)
    for text, output in zip(texts, encoder.embed(texts, use_tqdm=False), strict=True):
        assert output.prompt == text
        assert output.outputs.embedding == pytest.approx(plain.embedding(text).tolist(), abs=2e-5)
    [short] = encoder.embed(texts[0], dimensions=8, use_tqdm=False)
    assert short.outputs.hidden_size == 8
    [tokens] = encoder.encode(texts[0], use_tqdm=False)
    assert len(tokens.outputs.data) == len(plain.tokenizer(texts[0]).input_ids)
    same, other = encoder.score(texts[0], [texts[0], texts[1]], use_tqdm=False)
    assert same.outputs.score == pytest.approx(1, abs=1e-5) and other.outputs.score < 0.5
    with pytest.raises(InvalidRequest, match="not for this model") as refused:
        encoder.generate("a", use_tqdm=False)
    assert refused.value.code == "wrong_task"


def test_labels_and_ranks_equal_those_of_transformers(minilm: Path, tmp_path: Path) -> None:
    labels = ["good", "bad", "so-so"]
    folder = encoders.classifier(tmp_path / "classifier", minilm, labels)
    plain = encoders.Reference(folder)
    with LLM(folder) as llm:
        [output] = llm.classify("What a day!", use_tqdm=False)
    assert output.outputs.labels == labels
    assert output.outputs.probs == pytest.approx(plain.logits("What a day!").softmax(0).tolist(), abs=1e-5)
    folder = encoders.classifier(tmp_path / "reranker", minilm, ["relevance"])
    plain = encoders.Reference(folder)
    query, documents = "Where is the cat?", ["In the sky.", "On the mat.", "At home."]
    with LLM(folder) as llm:
        ranked = llm.rerank(query, documents, top_n=2)
        scores = [each.outputs.score for each in llm.score(query, documents, use_tqdm=False)]
    expected = [plain.logits(query, document).sigmoid().item() for document in documents]
    assert scores == pytest.approx(expected, abs=1e-5)
    best = sorted(range(3), key=lambda index: -expected[index])[:2]
    assert [(each.index, each.document) for each in ranked] == [(index, documents[index]) for index in best]


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"max_modle_len": 5}, "max_modle_len", "unexpected argument"),
        ({"dtype": "int3"}, "dtype", "float32"),
        ({"tensor_parallel_size": "two"}, "tensor_parallel_size", "given as '--tensor-parallel-size'"),
        ({"quantization": "awq"}, "quantization", "--quantize"),
        ({"sharded": False, "num_shard": 2}, "sharded", "contradicts"),
        ({"max_model_len": 10, "max_input_tokens": 20}, "max_input_tokens", "not below"),
        ({"uds": "/no/such/folder/http"}, "uds", "--uds"),
        ({"port": 80}, "port", "private socket"),
        ({"dtype": {}}, "dtype", "dict"),
    ],
)
def test_wrong_arguments_are_refused_by_name(smollm2: Path, options: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        LLM(smollm2, **options)
    assert refused.value.field == field


def test_models_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        LLM()
    assert refused.value.field == "model"
    with pytest.raises(InvalidRequest, match="more than once"):
        LLM("a", model_id="b")
    (tmp_path / "empty").mkdir()
    for model in (tmp_path / "empty", tmp_path / "nothing", "/no/such/model"):
        with pytest.raises(ModelError, match=str(model)):
            LLM(model)
    with pytest.raises(InvalidRequest, match="dtype"):
        LLM("http://127.0.0.1:9", dtype="float32")
    with pytest.raises(GridworkError, match=r"127\.0\.0\.1:9"):
        LLM("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 100_000}, "n"),
        ({"stop": [""]}, "stop"),
        ({"logprobs": 1000}, "logprobs"),
        ({"allowed_token_ids": [10**9]}, "allowed_token_ids"),
    ],
)
def test_wrong_parameters_are_refused_by_name(llm: LLM, params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field) as refused:
        llm.generate("a", params, use_tqdm=False)
    assert refused.value.field == field


def test_a_closed_llm_says_so(tiny: Callable[[str], Path]) -> None:
    llm = LLM(tiny("llama"))
    llm.close()
    llm.close()
    with pytest.raises(GridworkError, match="closed"):
        llm.generate("a", use_tqdm=False)
