"""Figures of a load: one result for each request, and what they sum up to.

A percentile is the smallest value that at least this share of all values do not exceed (nearest-rank method).
"""

import math
import re
import statistics
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gridwork.errors import InvalidRequest


@dataclass(slots=True)
class Result:
    """Result of a request. Times are seconds since the start of the load."""

    sent_s: float
    """When it was sent; with a rate, when it was meant to be."""
    first_s: float | None = None
    """First chunk with tokens; None where none arrived."""
    last_s: float = 0.0
    """Last chunk with tokens."""
    ended_s: float = 0.0
    num_chunks: int = 0
    output_tokens: int = 0
    """By the server's usage, or the number of chunks where it sends none."""
    has_usage: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    gaps_s: "array[float]" = field(default_factory=lambda: array("d"))
    """Times between chunks."""
    error: str | None = None
    """Kind of error; None for an answer that is whole."""

    @property
    def ttft_ms(self) -> float:
        """Time to the first token, of an answer that has one."""
        return 1e3 * ((self.first_s if self.first_s is not None else math.nan) - self.sent_s)

    @property
    def tpot_ms(self) -> float:
        """Time for each output token after the first; NaN for an answer of one token."""
        if self.output_tokens < 2 or self.first_s is None:
            return math.nan
        return 1e3 * (self.last_s - self.first_s) / (self.output_tokens - 1)

    @property
    def e2e_ms(self) -> float:
        """Time from sending to the end of the answer."""
        return 1e3 * (self.ended_s - self.sent_s)


@dataclass(frozen=True)
class Slo:
    """Limits that an answer must keep to count as good. None: no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    @classmethod
    def read(cls, text: str) -> "Slo":
        """Reads "ttft=200 tpot=50": limits in milliseconds, in any order. Raises InvalidRequest."""
        limits: dict[str, float] = {}
        for word in re.split(r"[\s,]+", text.strip()):
            name, _, value = word.partition("=")
            try:
                limit = float(value)
            except ValueError:
                limit = math.nan
            if name not in ("ttft", "tpot", "e2e") or not 0 < limit < math.inf or f"{name}_ms" in limits:
                raise InvalidRequest(
                    f'--slo is "{text}", in which "{word}" is no limit; give each of ttft, tpot and e2e at most once, '
                    'in milliseconds, as in "ttft=200 tpot=50"'
                )
            limits[f"{name}_ms"] = limit
        return cls(**limits)

    def is_kept(self, result: Result) -> bool:
        """True for a whole answer within all limits. An answer of one token keeps any limit of TPOT."""
        if result.error is not None:
            return False
        pairs = ((result.ttft_ms, self.ttft_ms), (result.tpot_ms, self.tpot_ms), (result.e2e_ms, self.e2e_ms))
        return not any(limit is not None and value > limit for value, limit in pairs)


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles of a time in milliseconds; None where nothing was measured."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of all values but NaN."""
        ordered = sorted(value for value in values if not math.isnan(value))
        if not ordered:
            return cls(None, None, None, None)
        return cls(statistics.fmean(ordered), *(percentile(ordered, share) for share in (0.5, 0.9, 0.99)))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value of the nearest rank among values in ascending order, of which there is at least one."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Figures:
    """Sums over all requests of a load. Latencies are those of whole answers."""

    num_requests: int
    num_failed: int
    duration_s: float
    requests_per_s: float
    """Whole answers a second."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that the server had in its prefix cache, where it says so."""
    output_tokens: int
    """Tokens of all answers, also of those that failed midway."""
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    output_count: str
    """"usage": the server counted the tokens of whole answers. "chunks": it sends no usage, and chunks count."""
    ttft_ms: Spread
    tpot_ms: Spread
    itl_ms: Spread
    """Times between chunks. A chunk may have several tokens."""
    e2e_ms: Spread
    tokens_per_chunk: float | None
    good_requests: int | None
    """Whole answers that keep the SLO; None without one."""
    goodput_per_s: float | None
    errors: dict[str, int]
    """Number of errors by kind, the most frequent first."""


def figures(results: Sequence[Result], duration_s: float, slo: Slo | None) -> Figures:
    """Sums up the results of a load that took `duration_s` from its start to its last answer."""
    whole = [result for result in results if result.error is None]
    began = [result for result in results if result.first_s is not None]
    duration_s = max(duration_s, 1e-9)
    output_tokens = sum(result.output_tokens for result in results)
    prompt_tokens = sum(result.prompt_tokens for result in results)
    num_chunks = sum(result.num_chunks for result in whole)
    good = sum(slo.is_kept(result) for result in whole) if slo else None
    return Figures(
        num_requests=len(results),
        num_failed=len(results) - len(whole),
        duration_s=duration_s,
        requests_per_s=len(whole) / duration_s,
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(result.cached_tokens for result in results),
        output_tokens=output_tokens,
        prompt_tokens_per_s=prompt_tokens / duration_s,
        output_tokens_per_s=output_tokens / duration_s,
        output_count="usage" if all(result.has_usage for result in whole) else "chunks",
        ttft_ms=Spread.of(result.ttft_ms for result in began if result.error is None),
        tpot_ms=Spread.of(result.tpot_ms for result in whole),
        itl_ms=Spread.of(1e3 * gap_s for result in whole for gap_s in result.gaps_s),
        e2e_ms=Spread.of(result.e2e_ms for result in whole),
        tokens_per_chunk=sum(result.output_tokens for result in whole) / num_chunks if num_chunks else None,
        good_requests=good,
        goodput_per_s=good / duration_s if good is not None else None,
        errors=dict(Counter(result.error for result in results if result.error is not None).most_common()),
    )
