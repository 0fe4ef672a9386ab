"""`AsyncLLM`: the twin of `LLM` for programs with an event loop."""

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from gridwork import jobs
from gridwork.engine import Engine
from gridwork.jobs import OnError, Params
from gridwork.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    RequestOutput,
    RerankResult,
    ScoringRequestOutput,
    TokenVectorsRequestOutput,
)
from gridwork.prompts import Messages, PromptType
from gridwork.running import in_order, merged

T = TypeVar("T")


class AsyncLLM:
    """A model, served as by `LLM`, whose methods are coroutines. Cancelling one ends its requests on the server.

    The server starts with the object. `async with` waits until it answers, and so does the first request.

    >>> from gridwork import AsyncLLM
    >>> async def main() -> None:
    ...     async with AsyncLLM(MODEL, dtype="float32") as llm:
    ...         [output] = await llm.generate("The capital of France is", {"temperature": 0, "max_tokens": 2})
    ...         print(output.text)
    ...         async for piece in llm.generate("One, two, three,", {"temperature": 0, "max_tokens": 2}, stream=True):
    ...             print(piece.outputs[0].delta, end="")
    >>> asyncio.run(main())
     Paris.
     four,
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Any) -> None:
        """Starts the server, without waiting. Raises InvalidRequest for an argument that cannot be a flag."""
        self._engine = Engine(os.fspath(model) if model is not None else None, options)

    # --- life -------------------------------------------------------------------------------------------------------

    async def wait_ready(self) -> None:
        """Waits until the server answers. Raises InvalidRequest, ModelError or EngineDied."""
        await self._engine.info()

    async def info(self) -> dict[str, Any]:
        """Model, limits and versions, as `/info` of the HTTP API has them."""
        return dict(await self._engine.info())

    async def close(self) -> None:
        """Ends the server and waits until it is gone. Requests that run fail with EngineDied."""
        self._engine.closed = True
        await self._engine.close_client()
        await asyncio.to_thread(self._engine.close_server)

    async def __aenter__(self) -> Self:
        try:
            await self.wait_ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the launcher; None for a server that ran before."""
        return self._engine.pid

    # --- generating -------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompts: PromptType | Sequence[PromptType] | Iterator[PromptType],
        sampling_params: Params | Sequence[Params] = ...,
        *,
        stream: Literal[False] = ...,
        on_error: OnError = ...,
    ) -> Coroutine[Any, Any, list[RequestOutput]]: ...
    @overload
    def generate(
        self,
        prompts: PromptType | Sequence[PromptType] | Iterator[PromptType],
        sampling_params: Params | Sequence[Params] = ...,
        *,
        stream: Literal[True],
    ) -> AsyncIterator[RequestOutput]: ...
    def generate(
        self,
        prompts: PromptType | Sequence[PromptType] | Iterator[PromptType],
        sampling_params: Params | Sequence[Params] = None,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
    ) -> Coroutine[Any, Any, list[RequestOutput]] | AsyncIterator[RequestOutput]:
        """As `LLM.generate`."""
        if stream:
            return merged(jobs.generating_streams(self._engine, prompts, sampling_params))
        return _all(jobs.generating(self._engine, prompts, sampling_params, on_error))

    def generate_each(
        self, prompts: Iterable[PromptType], sampling_params: Params = None, *, on_error: OnError = "raise"
    ) -> AsyncIterator[RequestOutput]:
        """Results in the order of any number of prompts, of which a bounded number is in memory."""
        return in_order(jobs.generating(self._engine, iter(prompts), sampling_params, on_error))

    @overload
    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params | Sequence[Params] = ...,
        *,
        stream: Literal[False] = ...,
        on_error: OnError = ...,
        **options: Any,
    ) -> Coroutine[Any, Any, list[RequestOutput]]: ...
    @overload
    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params | Sequence[Params] = ...,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> AsyncIterator[RequestOutput]: ...
    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params | Sequence[Params] = None,
        *,
        stream: bool = False,
        on_error: OnError = "raise",
        **options: Any,
    ) -> Coroutine[Any, Any, list[RequestOutput]] | AsyncIterator[RequestOutput]:
        """As `LLM.chat`."""
        jobs.check_options(options)
        if stream:
            return merged(jobs.answering_streams(self._engine, messages, sampling_params, options))
        return _all(jobs.answering(self._engine, messages, sampling_params, on_error, options))

    # --- encoders ---------------------------------------------------------------------------------------------------

    async def embed(
        self,
        prompts: PromptType | Sequence[PromptType],
        *,
        dimensions: int | None = None,
        on_error: OnError = "raise",
    ) -> list[EmbeddingRequestOutput]:
        """As `LLM.embed`."""
        return await _all(jobs.embedding(self._engine, prompts, on_error, dimensions))

    async def encode(
        self, prompts: PromptType | Sequence[PromptType], *, on_error: OnError = "raise"
    ) -> list[TokenVectorsRequestOutput]:
        """As `LLM.encode`."""
        return await _all(jobs.embedding_tokens(self._engine, prompts, on_error))

    async def classify(
        self, prompts: PromptType | Sequence[PromptType], *, on_error: OnError = "raise"
    ) -> list[ClassificationRequestOutput]:
        """As `LLM.classify`."""
        return await _all(jobs.classifying(self._engine, prompts, on_error))

    async def score(
        self, text_1: str | Sequence[str], text_2: str | Sequence[str], *, on_error: OnError = "raise"
    ) -> list[ScoringRequestOutput]:
        """As `LLM.score`."""
        return await _all(jobs.scoring(self._engine, text_1, text_2, on_error))

    async def rerank(self, query: str, documents: Sequence[str], *, top_n: int | None = None) -> list[RerankResult]:
        """As `LLM.rerank`."""
        return await self._engine.rerank(query, jobs.texts(documents, "documents"), top_n)


async def _all(each: Iterable[jobs.Job[T]]) -> list[T]:
    return [result async for result in in_order(each)]
