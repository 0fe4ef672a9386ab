"""Part 3: tokens and log-probabilities that are sampled on the device against those of the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gridwork_server.sampling import Sampler
from gridwork_server.sampling.sampled import SampleOutput
from tests.sampling.naive import Parameters
from tests.sampling.support import peaked_logits
from tests.sampling.test_sampler import mixed

from gpu_check.part.context import Context

_PROMPT = (3, 4, 5)
_NOISE = 5e-7
"""Relative noise of logits, as large as what exp() may differ by between devices."""
_ATTEMPTS = 64
"""Noisy repetitions of a draw that ended in another token. A right one ends in that token in about half of them."""


@dataclass(frozen=True)
class Case:
    """A vocabulary to sample from. coarse: logits that are rounded to bfloat16, so that many are equal."""

    vocab_size: int
    coarse: bool
    rows: int
    steps: int


def run(context: Context) -> None:
    """Samples rows with all kinds of parameters, for several steps, so that penalties count what was sampled before."""
    rows, steps = (12, 3) if context.tiny else (64, 24)
    vocabularies = (1000,) if context.tiny else (1000, 50_257, 128_256, 262_144)
    for vocab_size in vocabularies:
        for coarse in (False, True):
            case = Case(vocab_size, coarse, rows, steps)
            name = f"{vocab_size} tokens, {'equal' if coarse else 'distinct'} logits"
            if context.has_time(name):
                _compare(context, name, case)


def _compare(context: Context, name: str, case: Case) -> None:
    params = mixed(case.rows)
    here, there = (_sampler(case.vocab_size, params, _PROMPT, device) for device in ("cpu", context.device))
    wrong, rounded, total, largest = [], 0, 0, 0.0
    history: list[list[int]] = [list(_PROMPT) for _ in params]
    for step in range(case.steps):
        logits = peaked_logits(case.rows, case.vocab_size, seed=step, coarse=case.coarse)
        positions = np.arange(case.rows) * 7 + 1 + step
        ids = np.arange(case.rows)
        given = there.sample(logits.to(context.device, copy=True), ids, positions)
        expected = _alone(here, logits, positions)
        total += case.rows
        differing = torch.nonzero(given.token_ids != torch.tensor([each.token_ids[0] for each in expected]))[:, 0]
        for row in differing.tolist():
            token = int(given.token_ids[row])
            if _is_rounding(params[row], history[row], logits[row], int(positions[row]), token):
                rounded += 1
            else:
                wrong.append(f"row {row} of step {step}: {params[row]}")
        if len(differing):
            break  # penalties would count different tokens from here on
        for tokens, token in zip(history, given.token_ids.tolist(), strict=True):
            tokens.append(token)
        assert given.logprobs is not None
        chosen = np.concatenate([each.logprobs for each in expected if each.logprobs is not None])
        largest = max(largest, float(np.nanmax(np.abs(given.logprobs - chosen))))
    detail = f"{total} tokens, {rounded} differ by rounding alone; log-probabilities differ by up to {largest:.1g}"
    problem = f"{len(wrong)} of {total} tokens differ; {wrong[0]}" if wrong else ""
    if not problem and not largest < 1e-4:
        problem = f"log-probabilities differ by {largest:.2g}"
    context.check(name, problem, detail)


def _sampler(vocab_size: int, params: list[Parameters], tokens: Sequence[int], device: torch.device | str) -> Sampler:
    """A sampler with a sequence of these tokens, prompt and generated ones, for each of the parameters."""
    sampler = Sampler(len(params), vocab_size, device)
    for id, each in enumerate(params):
        admitted = np.array(tokens, dtype=np.int32)
        sampler.admit(id, admitted, len(_PROMPT), each, logprobs=True, top_n=3)
    return sampler


def _alone(sampler: Sampler, logits: torch.Tensor, positions: np.ndarray) -> list[SampleOutput]:
    """Samples row by row."""
    return [
        sampler.sample(logits[row : row + 1].clone(), np.array([row]), positions[row : row + 1])
        for row in range(len(logits))
    ]


def _is_rounding(params: Parameters, tokens: list[int], logits: torch.Tensor, position: int, token: int) -> bool:
    """True if rounding alone explains a drawn token: the CPU draws it too when logits `[V]` have a little noise. Only
    draws at the border of two tokens change with it. tokens: of the sequence so far."""
    if params.greedy:
        return False
    generator = torch.Generator().manual_seed(0)
    for _ in range(_ATTEMPTS):
        sampler = _sampler(len(logits), [params], tokens, "cpu")
        noisy = logits * (1 + _NOISE * torch.randn(logits.shape, generator=generator))
        if int(sampler.sample(noisy[None], np.array([0]), np.array([position])).token_ids[0]) == token:
            return True
    return False
