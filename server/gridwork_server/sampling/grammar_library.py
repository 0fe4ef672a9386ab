"""The library of grammars, llguidance: the model's tokens in its form, and compiled grammars."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from gridwork_server._proto import shard_pb2 as pb

_NUM_THREADS = 2
"""Threads that compile. Most grammars take a few milliseconds, less than the prefill beside them."""

_STACK_BYTES = 256 * 2**20
"""Stack of a compiling thread, as in the router: the library recurses over nested expressions."""

_NUM_KEPT = 64
"""Number of compiled grammars that are kept, so that requests with the same one copy it."""


class GrammarLibrary:
    """Compiles grammars for the tokens of one model, in threads of its own and without Python's lock."""

    def __init__(self, tokens: "pb.TokenTable", vocab_size: int) -> None:
        """vocab_size: number of logits. Returns at once; the tokens are arranged meanwhile, which takes up to a
        second."""
        self._threads = _threads_with_large_stacks()
        self._tokenizer: Future[LLTokenizer] = self._threads.submit(_tokenizer, tokens, vocab_size)
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()

    def compiled(self, grammar: str) -> "Future[LLMatcher]":
        """A matcher at the beginning of a text, to be copied. grammar: llguidance's JSON. A grammar that is not valid
        gives a matcher in an error state."""
        found = self._compiled.get(grammar)
        if found is None:
            found = self._compiled[grammar] = self._threads.submit(self._compile, grammar)
            if len(self._compiled) > _NUM_KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return found

    @property
    def tokenizer(self) -> "LLTokenizer":
        """The model's tokens; waits until they are arranged."""
        return self._tokenizer.result()

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: str) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        # The router has compiled it within the same limits.
        return LLMatcher(self.tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))


class _Words:
    """Tokens as the library reads them."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: "pb.TokenTable", vocab_size: int) -> None:
        ends = np.cumsum(np.fromiter(tokens.lengths, dtype=np.int64))[:vocab_size].tolist()
        starts = [0, *ends[:-1]] if ends else []
        words = [tokens.text[start:end] for start, end in zip(starts, ends, strict=True)]
        self.tokens = words + [b""] * (vocab_size - len(words))
        self.eos_token_id = tokens.end_ids[0] if tokens.end_ids else None
        special = {*tokens.special_ids, *tokens.end_ids}
        self.special_token_ids = sorted(id for id in special if id < vocab_size and self.tokens[id])

    def __call__(self, text: str) -> list[int]:
        raise RuntimeError("grammars force no tokens, so no text is tokenized")


def _tokenizer(tokens: "pb.TokenTable", vocab_size: int) -> "LLTokenizer":
    from llguidance import LLTokenizer

    words: Any = _Words(tokens, vocab_size)
    ends = list(tokens.end_ids) or None
    return LLTokenizer(words, eos_token=ends)


def _threads_with_large_stacks() -> ThreadPoolExecutor:
    previous = threading.stack_size(_STACK_BYTES)
    try:
        threads = ThreadPoolExecutor(_NUM_THREADS, "grammar-compiler")
        # A thread starts with each task that no idle thread could take.
        all_here: Callable[[], int] = threading.Barrier(_NUM_THREADS + 1).wait
        for _ in range(_NUM_THREADS):
            threads.submit(all_here)
        all_here()
    finally:
        threading.stack_size(previous)
    return threads
