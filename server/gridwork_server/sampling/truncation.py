"""Top-k, typical-p, top-p and min-p over candidates, without sorting the vocabulary where that can be avoided.

Only tokens that could matter are sorted: first the 64 best tokens of each row, then 512, then all. A row is done at the
first level whose candidates provably hold everything that stays, so the level changes the time, never the result. Ties
are settled the same way at every level: all tokens as likely as the k-th stay (as in Transformers), and among equal
logits the smaller id comes first. Only the device knows whether a row is done: on a GPU all tokens are sorted at once,
so that the host waits for nothing.

Formulas: top-k, A. Fan et al., "Hierarchical Neural Story Generation", 2018; top-p, A. Holtzman et al., "The Curious
Case of Neural Text Degeneration", 2019; typical-p, C. Meister et al., "Locally Typical Sampling", 2022; min-p, M. N.
Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024.
"""

from dataclasses import dataclass

import torch

from gridwork_server.sampling.draw import DrawSettings
from gridwork_server.sampling.weights import (
    BLOCK,
    block_members,
    block_weights,
    in_blocks,
    integer_weights,
    pick,
    relative_probabilities,
    rows_per_chunk,
)

LEVELS = (64, 512)

_SORTED_AT_ONCE = 1 / 4
"""Elements that a GPU sorts at once, as a share of those in a streaming pass. Sorting and the passes after it take some
60 bytes for each element."""


@dataclass
class _Candidates:
    """K tokens of each row, best logit first; [R, K]."""

    tokens: torch.Tensor  # int64
    logits: torch.Tensor  # float32
    scores: torch.Tensor  # float32: scores that they were chosen by
    boundary: torch.Tensor | None  # float32 [R, 1]: all tokens with higher scores are here; None: all tokens are


def draw_truncated(
    logits: torch.Tensor,
    rows: torch.Tensor,
    maxima: torch.Tensor,
    settings: DrawSettings,
    levels: tuple[int, ...] = LEVELS,
) -> torch.Tensor:
    """Draws token ids int64 [R] from the tokens that the settings keep.

    logits: float32 [B, V]; rows: int64 [R], ascending; maxima: float32 [R], each row's largest logit; levels: numbers
    of candidates to try first on CPUs.
    """
    vocab_size = logits.shape[1]
    on_cpu = logits.device.type == "cpu"
    result = torch.empty_like(rows)
    pending = torch.arange(len(rows), device=rows.device)
    for level in (*(size for size in levels if on_cpu and 4 * size <= vocab_size), vocab_size):
        last = level == vocab_size
        # Top-k needs more candidates than it keeps, to see where its ties end.
        tried = pending if last else pending[settings.limits["top_k"][pending, 0] < level]
        if not len(tried):
            continue
        done = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        step = rows_per_chunk(logits, factor=16 if on_cpu else _SORTED_AT_ONCE)
        for start in range(0, len(tried), step):
            part = tried[start : start + step]
            values = logits if len(part) == len(logits) else logits.index_select(0, rows[part])
            cut = settings.take(part)
            kept = truncate(values, maxima[part, None], cut, level)
            index, _ = pick(kept.weights, cut.uniform)
            result[part] = kept.tokens.gather(1, index)[:, 0]
            done[part] = kept.complete
        if last:
            break
        pending = pending[~done[pending]]
        if not len(pending):
            break
    return result


@dataclass
class Kept:
    """Tokens that are kept of each row, [R, K]."""

    tokens: torch.Tensor  # int64, by falling logit, then by id
    weights: torch.Tensor  # int64, 0 where the token was dropped
    complete: torch.Tensor  # bool [R]: no token is missing


def truncate(values: torch.Tensor, maxima: torch.Tensor, settings: DrawSettings, level: int) -> Kept:
    """Cuts the distributions of logits float32 [R, V] to the best `level` candidates of each row.

    maxima: float32 [R, 1]. With a level of V every row is complete.
    """
    inverse_temperature = settings.inverse_temperature
    has_top_k = settings.has("top_k")
    has_typical = settings.has("typical_p")
    has_top_p = settings.has("top_p")
    limits, cuts = settings.limits, settings.cuts

    scores = values
    totals = torch.zeros_like(maxima, dtype=torch.int64)
    surprises = torch.zeros_like(maxima)  # mean of (max - logit) / temperature: the entropy less a constant
    if "top_k" not in cuts.in_all:
        totals, surprises = _vocabulary_sums(values, maxima, inverse_temperature, "typical_p" in cuts.in_some)
        if "typical_p" in cuts.in_some:
            by_typicality = -_distance(values, maxima, inverse_temperature, surprises)
            scores = torch.where(has_typical & ~has_top_k, by_typicality, values)

    found = _best(values, scores, level)
    weights = integer_weights(relative_probabilities(found.logits, maxima, inverse_temperature))
    complete = torch.ones_like(has_top_k)
    keep = torch.ones_like(weights, dtype=torch.bool)

    if "top_k" in cuts.in_some:
        kth = found.logits.gather(1, (limits["top_k"] - 1).clamp(0, level - 1))
        keep &= ~has_top_k | (found.logits >= kth)
        if found.boundary is not None:
            complete &= ~has_top_k | (kth > found.boundary)

    if "typical_p" in cuts.in_some:
        kept = weights * keep
        totals = torch.where(has_top_k, kept.sum(1, keepdim=True), totals)
        means = _mean_surprise(found.logits, kept, maxima, inverse_temperature)
        distances = _distance(found.logits, maxima, inverse_temperature, torch.where(has_top_k, means, surprises))
        distances = distances.masked_fill(~keep, torch.inf)
        by_distance = distances.argsort(1)
        # The most typical tokens up to the one that reaches the mass, and all that are as typical as that one.
        sorted_weights = kept.gather(1, by_distance)
        before = sorted_weights.cumsum(1) - sorted_weights
        in_mass = before < limits["typical_p"].to(torch.float64) * totals
        farthest = distances.gather(1, by_distance).masked_fill(~in_mass, -torch.inf).amax(1, keepdim=True)
        keep &= ~has_typical | (distances <= farthest)
        if found.boundary is not None:
            complete &= ~has_typical | has_top_k | (-farthest > found.boundary)

    if "top_p" in cuts.in_some:
        kept = weights * keep
        mass = torch.where(has_top_k | has_typical, kept.sum(1, keepdim=True), totals)
        before = kept.cumsum(1) - kept
        keep &= ~has_top_p | (before < limits["top_p"].to(torch.float64) * mass)

    kept = weights * keep
    floors = torch.ceil(limits["min_p"].to(torch.float64) * kept.amax(1, keepdim=True)).to(torch.int64)
    kept.masked_fill_(kept < floors, 0)
    if found.boundary is not None:
        reached = ((kept > 0) & (found.logits <= found.boundary)).any(1, keepdim=True)
        complete &= has_top_k | has_typical | ~reached
    return Kept(found.tokens, kept, complete[:, 0])


def _surprise(logits: torch.Tensor, maxima: torch.Tensor, inverse_temperature: torch.Tensor) -> torch.Tensor:
    return (maxima - logits) * inverse_temperature


def _distance(
    logits: torch.Tensor, maxima: torch.Tensor, inverse_temperature: torch.Tensor, means: torch.Tensor
) -> torch.Tensor:
    """|-log p - entropy| float32, in which the log of the softmax's sum cancels out."""
    return (_surprise(logits, maxima, inverse_temperature) - means).abs_()


def _mean_surprise(
    logits: torch.Tensor, weights: torch.Tensor, maxima: torch.Tensor, inverse_temperature: torch.Tensor
) -> torch.Tensor:
    """Mean surprise float32 [R, 1] of tokens with weights int64 [R, n]. Tokens of weight 0 do not count."""
    surprise = _surprise(logits, maxima, inverse_temperature).to(torch.float64)
    sums = (surprise * weights).masked_fill_(weights == 0, 0).to(torch.int64).sum(1, keepdim=True)
    return (sums.to(torch.float64) / weights.sum(1, keepdim=True)).to(torch.float32)


def _vocabulary_sums(
    values: torch.Tensor, maxima: torch.Tensor, inverse_temperature: torch.Tensor, with_surprise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight of a whole row int64 [R, 1], and its mean surprise float32 [R, 1], zero unless `with_surprise`."""
    totals, means = [], []
    step = rows_per_chunk(values)
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        relative = relative_probabilities(values[part], maxima[part], inverse_temperature[part])
        if with_surprise:
            surprise = _surprise(values[part], maxima[part], inverse_temperature[part])
            weighted = surprise.mul_(relative).masked_fill_(relative == 0, 0)
            means.append(block_weights(weighted).sum(1, keepdim=True))
        totals.append(block_weights(relative).sum(1, keepdim=True))
    total = torch.cat(totals)
    if not with_surprise:
        return total, torch.zeros_like(maxima)
    return total, (torch.cat(means).to(torch.float64) / total).to(torch.float32)


def _best(values: torch.Tensor, scores: torch.Tensor, count: int) -> _Candidates:
    """The `count` tokens with the highest scores [R, V] of each row, sorted by falling value, then by id."""
    if count == values.shape[1]:
        tokens = torch.arange(count, device=values.device).expand(len(values), count)
        boundary = None
    else:
        tokens, boundary = best_tokens(scores, count)
        tokens = tokens.sort(1).values
    logits, order = values.gather(1, tokens).sort(stable=True, dim=1, descending=True)
    tokens = tokens.gather(1, order)
    return _Candidates(tokens, logits, scores.gather(1, tokens), boundary)


def best_tokens(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [R, count] of the highest scores float32 [R, V], and the lowest of these scores [R, 1].

    All tokens with a higher score than that are among them, and some of those with an equal score. Only blocks with the
    highest maxima are searched: the best `count` tokens are in the `count` blocks with the highest maxima.
    """
    blocks = in_blocks(scores, -torch.inf)
    num_blocks = blocks.shape[2]
    if 2 * count >= num_blocks:
        values, tokens = scores.topk(count, dim=1)
        return tokens, values[:, -1:]
    chosen = blocks.amax(1).topk(count, dim=1, sorted=False).indices
    members = block_members(chosen, num_blocks).view(len(scores), count * BLOCK)
    inside = scores.gather(1, members.clamp(max=scores.shape[1] - 1))
    values, index = inside.masked_fill_(members >= scores.shape[1], -torch.inf).topk(count, dim=1)
    return members.gather(1, index), values[:, -1:]
