"""Rules on a token by the tokens before it, against Transformers' own processors."""

import numpy as np
import pytest
import torch
from transformers import WatermarkDetector, WatermarkingConfig
from transformers.configuration_utils import PretrainedConfig

from gridwork_server.sampling import Sampler, neutral_parameters

from .naive import Parameters, ruled_by_transformers
from .support import peaked_logits

VOCAB = 40
KEY = 15485863

RULES = {
    "single": {"run_tokens": [5, 9], "run_lengths": [1, 1], "run_biases": [-np.inf, 3.0]},
    "pair": {"run_tokens": [5, 9, 7, 7], "run_lengths": [2, 2], "run_biases": [-np.inf, -np.inf]},
    "several": {"run_tokens": [3, 5, 9, 5, 9, 9], "run_lengths": [3, 2, 1], "run_biases": [-np.inf, 4.0, -1.5]},
    "ngram_of_1": {"no_repeat_ngram_size": 1},
    "ngram_of_2": {"no_repeat_ngram_size": 2},
    "ngram_of_3": {"no_repeat_ngram_size": 3},
    "begin": {"begin_forbidden_token_ids": [3, 5, 7]},
    "watermark": {"watermark_share": 0.25, "watermark_bias": 3.0, "watermark_key": KEY},
    "all": {
        "run_tokens": [5, 9, 7, 7],
        "run_lengths": [2, 2],
        "run_biases": [-np.inf, 2.0],
        "no_repeat_ngram_size": 3,
        "begin_forbidden_token_ids": [3],
        "watermark_share": 0.5,
        "watermark_bias": 2.0,
        "watermark_key": 7,
    },
}


def text_of(*sequences: list[int]) -> np.ndarray:
    """int32: the tokens of each sequence, and surplus ones behind them that must not count."""
    width = max(map(len, sequences)) + 4
    return np.array([[*tokens, *[5] * (width - len(tokens))] for tokens in sequences], dtype=np.int32)


@pytest.mark.parametrize("name", RULES)
def test_rules_give_the_tokens_that_transformers_gives_over_many_steps(name: str) -> None:
    params = Parameters(greedy=True, **RULES[name])
    sampler = Sampler(2, VOCAB, "cpu")
    random = np.random.default_rng(1)
    prompts = [random.integers(0, 12, 6).tolist(), [3, 5, 9, 7]]
    for id, prompt in enumerate(prompts):
        sampler.admit(id, np.array(prompt, dtype=np.int32), len(prompt), params)
    generated: list[list[int]] = [[], []]
    changed = 0
    for step in range(30):
        # Few tokens are likely, so that runs of them come again.
        logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(step))
        logits[:, :12] += 3
        histories = [prompt + more for prompt, more in zip(prompts, generated, strict=True)]
        positions = np.array([len(history) for history in histories])
        drawn = sampler.sample(logits.clone(), np.arange(2), positions, text_of(*histories)).token_ids.tolist()
        for row in range(2):
            expected = ruled_by_transformers(logits[row], params, prompts[row], generated[row])
            assert drawn[row] == int(expected.argmax()), (name, step, row)
            changed += drawn[row] != int(logits[row].argmax())
            generated[row].append(drawn[row])
    assert changed, "no rule ever mattered"


def test_a_run_whose_beginning_is_the_whole_text_is_forbidden() -> None:
    sampler = Sampler(1, VOCAB, "cpu")
    params = Parameters(greedy=True, run_tokens=[4, 6], run_lengths=[2], run_biases=[-np.inf])
    sampler.admit(0, np.array([4], dtype=np.int32), 1, params)
    logits = torch.zeros(1, VOCAB)
    logits[0, 6], logits[0, 8] = 5, 4
    assert sampler.sample(logits, np.array([0]), np.array([1]), text_of([4])).token_ids.tolist() == [8]


def test_each_draft_has_the_rules_of_the_tokens_before_it() -> None:
    sampler = Sampler(1, VOCAB, "cpu")
    params = Parameters(greedy=True, run_tokens=[4, 6], run_lengths=[2], run_biases=[-np.inf])
    sampler.admit(0, np.array([1, 2], dtype=np.int32), 2, params)
    logits = torch.zeros(3, VOCAB)
    logits[:, 6], logits[:, 8] = 5, 4
    sampler.check_drafts(np.array([0]))
    found = sampler.sample(logits, np.zeros(3, dtype=np.int64), np.array([2, 3, 4]), text_of([1, 2, 4, 6]))
    assert found.token_ids.tolist() == [6, 8, 6]


def test_tokens_before_the_text_do_not_count() -> None:
    sampler = Sampler(1, VOCAB, "cpu")
    params = Parameters(greedy=True, run_tokens=[4, 6], run_lengths=[2], run_biases=[-np.inf])
    sampler.admit(0, np.zeros(0, dtype=np.int32), 0, params, first_position=2)
    logits = torch.zeros(1, VOCAB)
    logits[0, 6] = 5
    found = [
        int(sampler.sample(logits.clone(), np.array([0]), np.array([len(text)]), text_of(text)).token_ids)
        for text in ([1, 4], [1, 2, 4])
    ]
    assert found == [6, 0]


def test_a_forced_token_comes_at_its_position_alone() -> None:
    sampler = Sampler(2, VOCAB, "cpu")
    params = Parameters(greedy=True, forced_positions=[3, 5, 5], forced_token_ids=[7, 9, 8])
    for id in range(2):
        sampler.admit(id, np.array([1, 2], dtype=np.int32), 2, params if id == 0 else Parameters(greedy=True))
    logits = torch.zeros(2, VOCAB)
    logits[:, 30] = 4
    found = [
        sampler.sample(logits.clone(), np.arange(2), np.full(2, position)).token_ids.tolist()
        for position in (2, 3, 4, 5)
    ]
    assert found == [[30, 30], [7, 30], [30, 30], [8, 30]]


def test_a_row_without_a_distribution_still_fails_where_a_token_is_forced() -> None:
    sampler = Sampler(1, VOCAB, "cpu")
    sampler.admit(
        0, np.zeros(1, dtype=np.int32), 1, Parameters(greedy=True, forced_positions=[1], forced_token_ids=[7])
    )
    assert sampler.sample(torch.full((1, VOCAB), torch.nan), np.array([0]), np.array([1])).failed.tolist() == [True]


def test_tokens_outside_the_vocabulary_have_no_rules() -> None:
    sampler = Sampler(1, VOCAB, "cpu")
    params = Parameters(
        greedy=True,
        run_tokens=[VOCAB, 3, VOCAB + 7, 1, VOCAB],
        run_lengths=[1, 2, 2],
        run_biases=[-np.inf] * 3,
        no_repeat_ngram_size=1,
    )
    sampler.admit(0, np.array([VOCAB + 7, 3], dtype=np.int32), 2, params)
    logits = peaked_logits(1, VOCAB)
    logits[0, 3] = -9
    found = sampler.sample(logits.clone(), np.array([0]), np.array([2]), text_of([VOCAB + 7, 3]))
    assert found.token_ids.tolist() == logits.argmax(1).tolist()


def test_a_reused_id_remembers_no_rules() -> None:
    sampler = Sampler(1, VOCAB, "cpu")
    ruled = Parameters(greedy=True, begin_forbidden_token_ids=[7], forced_positions=[1], forced_token_ids=[3])
    ruled.run_tokens, ruled.run_lengths, ruled.run_biases = [7], [1], [-np.inf]
    sampler.admit(0, np.zeros(1, dtype=np.int32), 1, ruled)
    assert sampler.reads_text(np.array([0]))
    sampler.admit(0, np.zeros(1, dtype=np.int32), 1, Parameters(greedy=True))
    assert not sampler.reads_text(np.array([0]))
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = 5
    assert sampler.sample(logits, np.array([0]), np.array([1])).token_ids.tolist() == [7]


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_watermark_is_found_by_the_detector_of_transformers(share: float) -> None:
    vocab_size, count = 500, 120
    settings = WatermarkingConfig(greenlist_ratio=share, bias=2.5, hashing_key=KEY)
    detector = WatermarkDetector(PretrainedConfig(vocab_size=vocab_size, bos_token_id=0), "cpu", settings)
    verdicts = []
    for bias in (2.5, 0.0):
        sampler = Sampler(1, vocab_size, "cpu")
        params = neutral_parameters(seed=9, watermark_share=share, watermark_bias=bias, watermark_key=KEY)
        sampler.admit(0, np.array([1], dtype=np.int32), 1, params)
        text = [1]
        for step in range(count):
            logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(step))
            output = sampler.sample(logits, np.array([0]), np.array([len(text)]), text_of(text))
            text.append(int(output.token_ids[0]))
        verdicts.append(bool(detector(torch.tensor([text[1:]]), z_threshold=4.0)[0]))
    assert verdicts == [True, False]
