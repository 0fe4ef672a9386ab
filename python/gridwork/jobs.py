"""Turns a call into jobs, one for each prompt. `LLM` and `AsyncLLM` share this, and run the jobs each its way."""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from gridwork.engine import Engine
from gridwork.errors import GridworkError, InvalidRequest
from gridwork.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
    TokenVectorsOutput,
    TokenVectorsRequestOutput,
)
from gridwork.prompts import Messages, Prompt, PromptType, is_conversation, is_lazy, is_single, read_prompt
from gridwork.sampling import SamplingParams

T = TypeVar("T")

OnError = Literal["raise", "return"]
"""Effect of a request that fails: raise for all of them, or return a result with its `error` in its place."""

Params = SamplingParams | Mapping[str, Any] | None
Job = Callable[[], Coroutine[Any, Any, T]]
StreamJob = Callable[[], AsyncIterator[RequestOutput]]


def check_on_error(on_error: str) -> None:
    """Raises InvalidRequest for other words."""
    if on_error not in ("raise", "return"):
        raise InvalidRequest(f'`on_error` is "raise" or "return". Given: {on_error!r}', field="on_error")


CHAT_OPTIONS = frozenset(
    (
        *("tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "add_generation_prompt"),
        *("continue_final_message", "reasoning_effort", "include_reasoning", "separate_reasoning", "response_format"),
        "add_special_tokens",
    )
)
"""Fields of `/v1/chat/completions` that `chat` takes, besides those of SamplingParams."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for an option that no chat has."""
    for name in options:
        if name not in CHAT_OPTIONS:
            known = ", ".join(sorted(CHAT_OPTIONS))
            raise InvalidRequest(f"`{name}` is not an argument of chat; known are {known}", field=name)


def generating(
    engine: Engine, prompts: object, sampling_params: Params | Sequence[Params], on_error: OnError
) -> Iterator[Job[RequestOutput]]:
    """Jobs that continue prompts."""
    check_on_error(on_error)
    for prompt, params in engine.seeds.given(_with_params(_prompts(prompts), prompts, sampling_params)):

        async def job(prompt: PromptType = prompt, params: SamplingParams | None = params) -> RequestOutput:
            text = prompt if isinstance(prompt, str) else None
            return await _guarded(
                lambda: engine.complete(read_prompt(prompt), params),
                lambda error: RequestOutput(engine.next_id(), text, error=error),
                on_error,
            )

        yield job


def answering(
    engine: Engine,
    messages: object,
    sampling_params: Params | Sequence[Params],
    on_error: OnError,
    options: Mapping[str, Any],
) -> Iterator[Job[RequestOutput]]:
    """Jobs that answer conversations."""
    check_on_error(on_error)
    for conversation, params in engine.seeds.given(_with_params(_conversations(messages), messages, sampling_params)):

        async def job(conversation: Messages = conversation, params: SamplingParams | None = params) -> RequestOutput:
            return await _guarded(
                lambda: engine.answer(conversation, params, options),
                lambda error: RequestOutput(engine.next_id(), None, error=error),
                on_error,
            )

        yield job


def generating_streams(
    engine: Engine, prompts: object, sampling_params: Params | Sequence[Params]
) -> Iterator[StreamJob]:
    """Jobs that continue prompts, piece by piece."""
    for prompt, params in engine.seeds.given(_with_params(_prompts(prompts), prompts, sampling_params)):
        yield functools.partial(engine.complete_stream, read_prompt(prompt), params)


def answering_streams(
    engine: Engine, messages: object, sampling_params: Params | Sequence[Params], options: Mapping[str, Any]
) -> Iterator[StreamJob]:
    """Jobs that answer conversations, piece by piece."""
    for conversation, params in engine.seeds.given(_with_params(_conversations(messages), messages, sampling_params)):
        yield functools.partial(engine.answer_stream, conversation, params, options)


def embedding(
    engine: Engine, prompts: object, on_error: OnError, dimensions: int | None
) -> Iterator[Job[EmbeddingRequestOutput]]:
    """Jobs that make vectors."""
    options = {"dimensions": dimensions} if dimensions is not None else {}
    nothing = EmbeddingOutput([])
    return _encoding(
        prompts,
        lambda prompt: engine.embed(prompt, options),
        lambda text, error: EmbeddingRequestOutput(engine.next_id(), text, nothing, error=error),
        on_error,
    )


def embedding_tokens(engine: Engine, prompts: object, on_error: OnError) -> Iterator[Job[TokenVectorsRequestOutput]]:
    """Jobs that make a vector for each token."""
    nothing = TokenVectorsOutput([])
    return _encoding(
        prompts,
        engine.embed_tokens,
        lambda text, error: TokenVectorsRequestOutput(engine.next_id(), text, nothing, error=error),
        on_error,
    )


def classifying(engine: Engine, prompts: object, on_error: OnError) -> Iterator[Job[ClassificationRequestOutput]]:
    """Jobs that label texts."""
    nothing = ClassificationOutput([], [])
    return _encoding(
        prompts,
        engine.classify,
        lambda text, error: ClassificationRequestOutput(engine.next_id(), text, nothing, error=error),
        on_error,
    )


def scoring(
    engine: Engine, text_1: str | Sequence[str], text_2: str | Sequence[str], on_error: OnError
) -> Iterator[Job[ScoringRequestOutput]]:
    """Jobs that score pairs of texts."""
    check_on_error(on_error)
    firsts, seconds = texts(text_1, "text_1"), texts(text_2, "text_2")
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if len(firsts) != len(seconds):
        raise InvalidRequest(
            f"`text_1` has {len(firsts)} texts and `text_2` has {len(seconds)}; give as many, or one as `text_1`",
            field="text_2",
        )
    for first, second in zip(firsts, seconds, strict=True):

        async def job(first: str = first, second: str = second) -> ScoringRequestOutput:
            return await _guarded(
                lambda: engine.score(first, second),
                lambda error: ScoringRequestOutput(engine.next_id(), None, ScoringOutput(float("nan")), error=error),
                on_error,
            )

        yield job


def _encoding(
    prompts: object,
    run: Callable[[Prompt], Coroutine[Any, Any, T]],
    failed: Callable[[str | None, GridworkError], T],
    on_error: OnError,
) -> Iterator[Job[T]]:
    check_on_error(on_error)
    for prompt in _prompts(prompts):

        async def job(prompt: PromptType = prompt) -> T:
            text = prompt if isinstance(prompt, str) else None
            return await _guarded(lambda: run(read_prompt(prompt)), lambda error: failed(text, error), on_error)

        yield job


async def _guarded(
    run: Callable[[], Coroutine[Any, Any, T]], failed: Callable[[GridworkError], T], on_error: OnError
) -> T:
    try:
        return await run()
    except GridworkError as error:
        if on_error == "raise":
            raise
        return failed(error)


def _prompts(prompts: object) -> Iterable[PromptType]:
    if is_single(prompts):
        return [prompts]  # type: ignore[list-item]
    return _several(prompts, "prompts", "a prompt")


def _conversations(messages: object) -> Iterable[Messages]:
    if is_conversation(messages):
        return [messages]  # type: ignore[list-item]
    return _several(messages, "messages", "a conversation")


def _several(given: object, field: str, one: str) -> Iterable[Any]:
    if is_lazy(given):
        return given
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidRequest(
            f"`{field}` is of type {type(given).__name__}; give {one}, or a list or an iterator of them", field=field
        )
    found = list(given)
    if not found:
        raise InvalidRequest(f"`{field}` is empty; give at least one", field=field)
    return found


def _with_params(
    items: Iterable[T], given: object, sampling_params: Params | Sequence[Params]
) -> Iterator[tuple[T, SamplingParams | None]]:
    if sampling_params is None or isinstance(sampling_params, SamplingParams | Mapping):
        params = SamplingParams.of(sampling_params)
        return ((item, params) for item in items)
    if not isinstance(sampling_params, Sequence) or isinstance(sampling_params, str):
        raise SamplingParams.refusal(sampling_params)
    several = [SamplingParams.of(each) for each in sampling_params]
    if is_lazy(given):
        raise InvalidRequest(
            "`sampling_params` is a list and the prompts are an iterator; give one for all", field="sampling_params"
        )
    listed = list(items)
    if len(several) != len(listed):
        raise InvalidRequest(
            f"`sampling_params` has {len(several)} entries for {len(listed)} prompts", field="sampling_params"
        )
    return zip(listed, several, strict=True)


def texts(given: str | Sequence[str], field: str) -> list[str]:
    """The texts of an argument. Raises InvalidRequest for what is none, and for an empty list."""
    found = [given] if isinstance(given, str) else list(given)
    for text in found:
        if not isinstance(text, str):
            raise InvalidRequest(f"`{field}` has an entry of type {type(text).__name__}; give texts", field=field)
    if not found:
        raise InvalidRequest(f"`{field}` is empty; give at least one text", field=field)
    return found
