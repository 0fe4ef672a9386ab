"""Top-k, typical-p, top-p and min-p against Transformers, and the levels against each other."""

import numpy as np
import pytest
import torch

from gridwork_server.sampling.draw import Cuts, DrawSettings
from gridwork_server.sampling.parameters import CUTS, PARAMETERS
from gridwork_server.sampling.truncation import best_tokens, draw_truncated, truncate

from .naive import Parameters, warped
from .support import peaked_logits

VOCAB = 4999  # no multiple of a block


def settings_for(params: list[Parameters], uniform: float = 0.5) -> DrawSettings:
    columns = {each.field: np.array([getattr(item, each.field) for item in params], each.dtype) for each in PARAMETERS}
    limits = {field: columns[field] for field in CUTS}
    return DrawSettings(
        inverse_temperature=1 / torch.from_numpy(columns["temperature"])[:, None],
        uniform=torch.full((len(params), 1), uniform, dtype=torch.float64),
        limits={field: torch.from_numpy(values)[:, None] for field, values in limits.items()},
        cuts=Cuts.of(limits),
    )


SETTINGS = {
    "top_k_1": Parameters(top_k=1),
    "top_k_50": Parameters(top_k=50),
    "top_k_63": Parameters(top_k=63, temperature=1.7),
    "top_k_400": Parameters(top_k=400),
    "top_k_4000": Parameters(top_k=4000),
    "top_p_tiny": Parameters(top_p=1e-6),
    "top_p_0.5": Parameters(top_p=0.5),
    "top_p_0.9": Parameters(top_p=0.9),
    "top_p_0.9_hot": Parameters(top_p=0.9, temperature=2.0),
    "top_p_0.999": Parameters(top_p=0.999),
    "min_p": Parameters(min_p=0.05),
    "min_p_1": Parameters(min_p=1.0),
    "typical_0.2": Parameters(typical_p=0.2),
    "typical_0.9": Parameters(typical_p=0.9),
    "typical_0.9_hot": Parameters(typical_p=0.9, temperature=3.0),
    "top_k_top_p": Parameters(top_k=50, top_p=0.9),
    "top_k_typical": Parameters(top_k=40, typical_p=0.7),
    "typical_top_p": Parameters(typical_p=0.8, top_p=0.8),
    "top_p_min_p": Parameters(top_p=0.95, min_p=0.02),
    "everything": Parameters(temperature=1.3, top_k=200, typical_p=0.95, top_p=0.9, min_p=0.01),
}


def kept_sets(logits: torch.Tensor, params: Parameters, level: int) -> list[set[int] | None]:
    """Tokens that are kept of each row; None where the level's candidates did not suffice."""
    kept = truncate(logits, logits.amax(1, keepdim=True), settings_for([params] * len(logits)), level)
    rows = zip(kept.tokens, kept.weights, kept.complete, strict=True)
    return [set(tokens[weights > 0].tolist()) if complete else None for tokens, weights, complete in rows]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_kept_tokens_are_those_that_transformers_keeps(name):
    """Exactly, except for a rare token whose place in the mass depends on rounding."""
    logits = peaked_logits(16, VOCAB, seed=3)
    differing = 0
    for row, kept in zip(logits, kept_sets(logits, SETTINGS[name], VOCAB), strict=True):
        expected = set(torch.nonzero(warped(row, SETTINGS[name]).isfinite())[:, 0].tolist())
        if kept != expected:
            differing += 1
            (token,) = kept ^ expected
            assert (row.double() / SETTINGS[name].temperature).softmax(0)[token] < 1e-4
    assert differing <= 1


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("level", [64, 512])
@pytest.mark.parametrize("name", SETTINGS)
def test_fewer_candidates_keep_the_same_tokens_or_report_that_they_do_not_suffice(name, level, coarse):
    if SETTINGS[name].top_k >= level:
        pytest.skip("top-k is never tried with so few candidates")
    logits = peaked_logits(32, VOCAB, seed=5, coarse=coarse)
    few, all_of_them = kept_sets(logits, SETTINGS[name], level), kept_sets(logits, SETTINGS[name], VOCAB)
    assert all(one is None or one == other for one, other in zip(few, all_of_them, strict=True))


@pytest.mark.parametrize("name", ["top_k_50", "top_p_0.5", "top_p_tiny", "top_k_top_p", "top_k_typical"])
def test_a_peaked_distribution_needs_few_candidates(name):
    logits = peaked_logits(32, VOCAB, seed=5)
    assert sum(one is not None for one in kept_sets(logits, SETTINGS[name], 64)) >= 28


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
def test_levels_change_no_token(coarse):
    params = list(SETTINGS.values()) * 10
    logits = peaked_logits(len(params), VOCAB, seed=11, coarse=coarse)
    maxima, rows = logits.amax(1), torch.arange(len(params))
    for uniform in (0.0, 0.3, 0.77, 1 - 2**-53):
        settings = settings_for(params, uniform)
        full = draw_truncated(logits, rows, maxima, settings, levels=())
        assert torch.equal(full, draw_truncated(logits, rows, maxima, settings))
        assert torch.equal(full, draw_truncated(logits, rows, maxima, settings, levels=(64, 128, 256, 1024)))


def test_tokens_as_likely_as_the_kth_stay():
    logits = torch.full((1, VOCAB), -5.0)
    logits[0, [7, 70, 700, 4000]] = torch.tensor([3.0, 2.0, 2.0, 2.0])
    assert kept_sets(logits, Parameters(top_k=2), 64) == [{7, 70, 700, 4000}]
    assert kept_sets(torch.zeros(1, VOCAB), Parameters(top_k=2), 64) == [None]
    assert kept_sets(torch.zeros(1, VOCAB), Parameters(top_k=2), VOCAB) == [set(range(VOCAB))]


@pytest.mark.parametrize("count", [1, 5, 64, 300, 2000])
@pytest.mark.parametrize("vocab_size", [2048, 20_011, 49_152])
def test_best_tokens_finds_the_highest_scores(count, vocab_size):
    scores = peaked_logits(8, vocab_size, seed=1)
    tokens, boundary = best_tokens(scores, count)
    expected = scores.topk(count, dim=1)
    assert torch.equal(scores.gather(1, tokens).sort(1, descending=True).values, expected.values)
    assert torch.equal(tokens.sort(1).values, expected.indices.sort(1).values)
    assert torch.equal(boundary, expected.values[:, -1:])
