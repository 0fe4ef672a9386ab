"""Finds out, before the load, how words become tokens on a server and which fields it accepts."""

from dataclasses import replace

from gridwork.bench.load import Load, Request, Target
from gridwork.bench.measure import Result
from gridwork.bench.prompts import Prompt, Scale, words
from gridwork.errors import RequestFailed

_PROBE_WORDS = (16, 80)
_PATIENCE_S = 300.0


async def accepted(target: Target) -> tuple[Target, str | None]:
    """The target without the further fields if the server refuses them, and what to say of that.

    Raises RequestFailed for a server that answers no request at all."""
    result = await _ask(target, words(_PROBE_WORDS[0], 0))
    if result.error is None:
        return target, None
    plain = replace(target, extra={})
    if target.extra and (await _ask(plain, words(_PROBE_WORDS[0], 0))).error is None:
        return plain, f"the server refuses {', '.join(target.extra)}: answers may be shorter ({result.error})"
    raise RequestFailed(f"a first request to {target.path} failed: {result.error}", status=0)


async def measured_scale(target: Target) -> Scale | None:
    """The scale from words to tokens by the server's own count; None where it sends no usage."""
    few, many = _PROBE_WORDS
    # Two other texts, in which nothing is cached.
    counts = [(await _ask(target, words(number, number))).prompt_tokens for number in (few, many)]
    if not 0 < counts[0] < counts[1]:
        return None
    tokens_per_word = (counts[1] - counts[0]) / (many - few)
    return Scale(fixed=counts[0] - few * tokens_per_word, tokens_per_word=tokens_per_word)


async def _ask(target: Target, text: str) -> Result:
    load = Load(target, _PATIENCE_S)
    await load.closed(iter([Request(Prompt(text=text), 2)]), 1, None)
    return load.results[0]
