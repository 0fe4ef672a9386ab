"""`LLM`: a model in a few lines, on the same server that speaks HTTP."""

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar, overload

from gridwork import jobs
from gridwork.engine import Engine
from gridwork.errors import EngineDied
from gridwork.jobs import OnError, Params
from gridwork.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    RequestOutput,
    RerankResult,
    ScoringRequestOutput,
    TokenVectorsRequestOutput,
)
from gridwork.prompts import Messages, PromptType, is_lazy
from gridwork.running import LoopThread, merged

T = TypeVar("T")


class LLM:
    """A model, served by a launcher, router and shards that belong to this object and end with it.

    `model` is a folder, a .gguf file, a name on the Hugging Face hub, or the URL of a server that runs already. Every
    flag of `gridwork` is a keyword argument (`dtype="float32"`, `num_shard=2`, `kv_cache_memory="4GiB"`), and so are
    those that vLLM and SGLang call otherwise (`tensor_parallel_size`, `max_model_len`, …).

    With `seed=7`, requests without a seed of their own get one each, the same in every program that makes the same
    calls.

    Prompts may also come from an iterator: results are then given as an iterator, in order, and only a bounded number
    of both is in memory. `on_error="return"` gives a result with an `error` in place of a prompt that was refused.

    >>> from gridwork import LLM, SamplingParams
    >>> with LLM(MODEL, dtype="float32") as llm:
    ...     for output in llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=2)):
    ...         print(output.outputs[0].text)
     Paris.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Any) -> None:
        """Starts the server and waits until it answers. Raises InvalidRequest for a wrong argument, ModelError for a
        model that cannot be served, EngineDied when the server ends otherwise."""
        self._engine = Engine(os.fspath(model) if model is not None else None, options)
        self._pid = os.getpid()
        self._loop = LoopThread()
        self._close = weakref.finalize(self, _close, self._loop, self._engine, self._pid)
        try:
            self._engine.wait_ready()
            self._info: dict[str, Any] = self._loop.run(self._engine.info())
        except BaseException:
            self.close()
            raise

    # --- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the server. Requests that run fail with EngineDied. May be called again."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an LLM belongs to the process that made it; make one in each process, or pass on its address")

    @property
    def pid(self) -> int | None:
        """Process id of the launcher; None for a server that ran before."""
        return self._engine.pid

    @property
    def info(self) -> dict[str, Any]:
        """Model, limits and versions, as `/info` of the HTTP API has them."""
        return dict(self._info)

    # --- generating -------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompts: Iterator[PromptType],
        sampling_params: Params = ...,
        *,
        stream: Literal[False] = ...,
        use_tqdm: bool = ...,
        on_error: OnError = ...,
    ) -> Iterator[RequestOutput]: ...
    @overload
    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: Params | Sequence[Params] = ...,
        *,
        stream: Literal[False] = ...,
        use_tqdm: bool = ...,
        on_error: OnError = ...,
    ) -> list[RequestOutput]: ...
    @overload
    def generate(
        self,
        prompts: PromptType | Sequence[PromptType] | Iterator[PromptType],
        sampling_params: Params | Sequence[Params] = ...,
        *,
        stream: Literal[True],
    ) -> Iterator[RequestOutput]: ...
    def generate(
        self,
        prompts: PromptType | Sequence[PromptType] | Iterator[PromptType],
        sampling_params: Params | Sequence[Params] = None,
        *,
        stream: bool = False,
        use_tqdm: bool = True,
        on_error: OnError = "raise",
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Continues prompts: texts, token ids, or dictionaries with `prompt` or `prompt_token_ids`. Results are in the
        order of the prompts.

        sampling_params: one for all or one for each; None: the model's own defaults. stream: gives the results as they
        grow, those of several prompts mixed, each until it is `finished`. use_tqdm: shows a bar.

        >>> for piece in llm.generate("One, two, three,", {"temperature": 0, "max_tokens": 4}, stream=True):
        ...     print(piece.outputs[0].delta, end="")
         four, five,
        """
        self._check()
        if stream:
            return self._loop.iterate(merged(jobs.generating_streams(self._engine, prompts, sampling_params)))
        each = jobs.generating(self._engine, prompts, sampling_params, on_error)
        return self._results(each, prompts, use_tqdm)

    @overload
    def chat(
        self,
        messages: Iterator[Messages],
        sampling_params: Params = ...,
        *,
        stream: Literal[False] = ...,
        use_tqdm: bool = ...,
        on_error: OnError = ...,
        **options: Any,
    ) -> Iterator[RequestOutput]: ...
    @overload
    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params | Sequence[Params] = ...,
        *,
        stream: Literal[False] = ...,
        use_tqdm: bool = ...,
        on_error: OnError = ...,
        **options: Any,
    ) -> list[RequestOutput]: ...
    @overload
    def chat(
        self,
        messages: Messages | Sequence[Messages] | Iterator[Messages],
        sampling_params: Params | Sequence[Params] = ...,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> Iterator[RequestOutput]: ...
    def chat(
        self,
        messages: Messages | Sequence[Messages] | Iterator[Messages],
        sampling_params: Params | Sequence[Params] = None,
        *,
        stream: bool = False,
        use_tqdm: bool = True,
        on_error: OnError = "raise",
        **options: Any,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """Answers a conversation, or several. options: `tools`, `tool_choice`, `chat_template_kwargs`,
        `add_generation_prompt`, `continue_final_message`, `reasoning_effort` and so on, as in `/v1/chat/completions`.

        >>> question = [{"role": "user", "content": "What is the capital of France?"}]
        >>> llm.chat(question, {"temperature": 0, "max_tokens": 20}, use_tqdm=False)[0].text
        'The capital of France is Paris.'
        """
        self._check()
        jobs.check_options(options)
        if stream:
            streams = jobs.answering_streams(self._engine, messages, sampling_params, options)
            return self._loop.iterate(merged(streams))
        each = jobs.answering(self._engine, messages, sampling_params, on_error, options)
        return self._results(each, messages, use_tqdm)

    # --- encoders ---------------------------------------------------------------------------------------------------

    def embed(
        self,
        prompts: PromptType | Sequence[PromptType],
        *,
        dimensions: int | None = None,
        use_tqdm: bool = True,
        on_error: OnError = "raise",
    ) -> list[EmbeddingRequestOutput]:
        """Vectors of texts. dimensions: number of elements to keep.

        >>> [output] = encoder.embed("hello", use_tqdm=False)
        >>> output.outputs.hidden_size
        384
        """
        self._check()
        return list(self._shown(jobs.embedding(self._engine, prompts, on_error, dimensions), prompts, use_tqdm))

    def encode(
        self, prompts: PromptType | Sequence[PromptType], *, use_tqdm: bool = True, on_error: OnError = "raise"
    ) -> list[TokenVectorsRequestOutput]:
        """Vectors of the tokens of texts: the last hidden states.

        >>> [output] = encoder.encode("hello", use_tqdm=False)
        >>> len(output.outputs.data), len(output.outputs.data[0])
        (3, 384)
        """
        self._check()
        return list(self._shown(jobs.embedding_tokens(self._engine, prompts, on_error), prompts, use_tqdm))

    def classify(
        self, prompts: PromptType | Sequence[PromptType], *, use_tqdm: bool = True, on_error: OnError = "raise"
    ) -> list[ClassificationRequestOutput]:
        """Labels of texts, of a model for classification.

        >>> [output] = classifier.classify("What a day!", use_tqdm=False)
        >>> sorted(output.outputs.labels)
        ['LABEL_0', 'LABEL_1', 'LABEL_2']
        """
        self._check()
        return list(self._shown(jobs.classifying(self._engine, prompts, on_error), prompts, use_tqdm))

    def score(
        self,
        text_1: str | Sequence[str],
        text_2: str | Sequence[str],
        *,
        use_tqdm: bool = True,
        on_error: OnError = "raise",
    ) -> list[ScoringRequestOutput]:
        """How well texts go together: a reranker's score, or the cosine of an encoder's vectors. One `text_1` is taken
        for all of `text_2`.

        >>> near, far = encoder.score("a cat", ["a kitten", "income tax"], use_tqdm=False)
        >>> near.outputs.score > far.outputs.score
        True
        """
        self._check()
        return list(self._shown(jobs.scoring(self._engine, text_1, text_2, on_error), text_2, use_tqdm))

    def rerank(self, query: str, documents: Sequence[str], *, top_n: int | None = None) -> list[RerankResult]:
        """Documents by how well they answer a query, best first. Needs a reranker.

        >>> best, _ = reranker.rerank("Where is the cat?", ["In the sky.", "On the mat."])
        >>> best.document in ("In the sky.", "On the mat.")
        True
        """
        self._check()
        return self._loop.run(self._engine.rerank(query, jobs.texts(documents, "documents"), top_n))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if not self._close.alive:
            raise EngineDied("this LLM is closed")
        if os.getpid() != self._pid:
            raise EngineDied(
                "this LLM belongs to the process that made it; make one in this process, with the start method `spawn` "
                "for multiprocessing"
            )

    def _results(self, each: Iterable[jobs.Job[T]], given: object, use_tqdm: bool) -> list[T] | Iterator[T]:
        results = self._shown(each, given, use_tqdm)
        return results if is_lazy(given) else list(results)

    def _shown(self, each: Iterable[jobs.Job[T]], given: object, use_tqdm: bool) -> Iterator[T]:
        results = self._loop.in_order(each)
        if not use_tqdm:
            return results
        from tqdm.auto import tqdm

        total = len(given) if isinstance(given, list | tuple) else None
        return iter(tqdm(results, total=total, desc="Processed prompts", dynamic_ncols=True))


def _close(loop: LoopThread, engine: Engine, pid: int) -> None:
    """In a forked child there is neither the thread nor a server of its own."""
    if os.getpid() != pid:
        return
    engine.closed = True
    loop.stop_with(engine.close_client)
    engine.close_server()
