"""Seeds of requests that name none, from the seed of an `LLM`."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from gridwork.errors import InvalidRequest
from gridwork.sampling import ModelDefaults, SamplingParams

T = TypeVar("T")


class Seeds:
    """Gives a seed to each request, in order: the same seeds for the same requests in every process."""

    def __init__(self, seed: object) -> None:
        """seed: an integer; None: requests keep a random seed of their own. Raises InvalidRequest."""
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise InvalidRequest(f"`seed` is of type {type(seed).__name__}; give an integer", field="seed")
        self._random = random.Random(seed) if seed is not None else None

    def given(self, requests: Iterable[tuple[T, SamplingParams | None]]) -> Iterator[tuple[T, SamplingParams | None]]:
        """The requests, with a seed where they have none."""
        for request, params in requests:
            if self._random is None or (params is not None and params.seed is not None):
                yield request, params
                continue
            seed = self._random.getrandbits(63)
            yield request, ModelDefaults(seed=seed) if params is None else replace(params, seed=seed)
