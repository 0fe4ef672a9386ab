"""The sampler as a whole: its draws, and the independence of rows."""

import numpy as np
import pytest
import torch

from gridwork_server.sampling import Sampler, best_logprobs, token_logprobs

from .naive import Parameters, penalized, repetition_by_transformers, shortest_length_by_transformers, warped
from .support import peaked_logits, sample, sampler_for

MIXED = [
    Parameters(greedy=True),
    Parameters(temperature=0.8),
    Parameters(temperature=1.2, min_p=0.05),
    Parameters(top_k=50, top_p=0.9),
    Parameters(top_p=0.95, temperature=1.5),
    Parameters(typical_p=0.9),
    Parameters(repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2),
    Parameters(top_k=300, logit_bias_tokens=[5, 9], logit_bias_values=[4.0, -3.0]),
    Parameters(temperature=1.1, first_end_position=200, end_token_ids=[2, 7]),
]


def mixed(count: int) -> list[Parameters]:
    return [Parameters(**{**vars(MIXED[i % len(MIXED)]), "seed": 1000 + i}) for i in range(count)]


def test_greedy_takes_the_first_of_the_most_likely_tokens():
    logits = peaked_logits(64, 49_152)
    logits[3, [17, 400]] = 100.0
    output = sample(sampler_for(49_152, [Parameters(greedy=True)] * 64), logits)
    assert torch.equal(output.token_ids, logits.argmax(1))
    assert output.token_ids[3] == 17
    assert output.token_ids.dtype == torch.int64
    assert not output.failed.any()
    assert output.logprobs is None
    assert output.num_top is None


def test_temperature_of_zero_is_greedy():
    logits = peaked_logits(4, 1000)
    assert torch.equal(sample(sampler_for(1000, [Parameters(temperature=0.0)] * 4), logits).token_ids, logits.argmax(1))


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("vocab_size", [1000, 50_257])
def test_a_row_gives_the_same_token_alone_and_among_63_others(vocab_size, coarse):
    params = mixed(64)
    logits = peaked_logits(64, vocab_size, seed=2, coarse=coarse)
    positions = np.arange(64) * 7 + 1
    together = sample(sampler_for(vocab_size, params), logits, positions=positions).token_ids
    order = np.random.default_rng(0).permutation(64)
    shuffled = sample(sampler_for(vocab_size, params), logits[order], order, positions[order]).token_ids
    assert torch.equal(shuffled, together[order])
    for row in range(64):
        alone = sample(sampler_for(vocab_size, params), logits[row : row + 1], [row], positions[row : row + 1])
        assert alone.token_ids[0] == together[row]


def test_the_number_of_threads_changes_no_token():
    params = mixed(64)
    logits = peaked_logits(64, 49_152, seed=8)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(sample(sampler_for(49_152, params), logits).token_ids)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_sequence_admitted_again_continues_with_the_same_tokens():
    """As after a preemption: generated tokens come back with the prompt, under another id."""
    vocab_size, steps = 300, 12
    params = Parameters(temperature=1.5, repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=0.3, seed=42)
    prompt = np.array([5, 6, 7, 5], dtype=np.int32)
    logits = peaked_logits(steps, vocab_size, seed=4)

    straight = Sampler(4, vocab_size, "cpu")
    straight.admit(0, prompt, 4, params)
    tokens = [int(sample(straight, logits[i : i + 1], [0], [4 + i]).token_ids[0]) for i in range(steps)]

    interrupted = Sampler(4, vocab_size, "cpu")
    interrupted.admit(1, prompt, 4, params)
    again = [int(sample(interrupted, logits[i : i + 1], [1], [4 + i]).token_ids[0]) for i in range(5)]
    interrupted.release([1])
    interrupted.admit(3, np.concatenate((prompt, np.array(again, dtype=np.int32))), 4, params)
    again += [int(sample(interrupted, logits[i : i + 1], [3], [4 + i]).token_ids[0]) for i in range(5, steps)]
    assert again == tokens


# --- distributions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        Parameters(),
        Parameters(temperature=0.5),
        Parameters(temperature=100.0),
        Parameters(min_p=0.1),
        Parameters(top_k=10),
        Parameters(top_p=0.8),
        Parameters(typical_p=0.7),
        Parameters(temperature=1.4, top_k=60, top_p=0.95, min_p=0.02),
    ],
    ids=repr,
)
def test_tokens_are_drawn_as_softmax_says(params):
    vocab_size, draws = 130, 40_000
    logits = peaked_logits(1, vocab_size, seed=6) / 3
    probabilities = warped(logits[0], params).double().softmax(0)
    sampler = sampler_for(vocab_size, [Parameters(**{**vars(params), "seed": i}) for i in range(400)])
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for position in range(draws // 400):
        tokens = sample(sampler, logits.expand(400, -1), positions=np.full(400, position)).token_ids
        counts += torch.bincount(tokens, minlength=vocab_size)
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * draws
    common = expected >= 5  # all others form one class
    observed = torch.cat((counts[common], counts[~common].sum()[None])).double()
    expected = torch.cat((expected[common], expected[~common].sum()[None]))
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = max(len(expected) - 1, 1)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_a_temperature_near_zero_takes_the_most_likely_token():
    logits = peaked_logits(64, 5000, seed=9)
    for params in (
        Parameters(temperature=1e-3),
        Parameters(temperature=1e-30),
        Parameters(temperature=1e-3, top_p=0.9),
    ):
        output = sample(sampler_for(5000, [params] * 64), logits)
        assert torch.equal(output.token_ids, logits.argmax(1))
        assert not output.failed.any()


def test_top_p_always_leaves_one_token():
    logits = torch.zeros(8, 1000)
    params = [Parameters(top_p=1e-30, seed=i) for i in range(8)]
    assert sample(sampler_for(1000, params), logits).token_ids.tolist() == [0] * 8


def test_forbidden_tokens_are_never_drawn():
    logits = torch.full((64, 700), -torch.inf)
    logits[:, [3, 650, 699]] = torch.tensor([1.0, 1.1, 1.2])
    for params in (
        Parameters(temperature=50.0),
        Parameters(top_k=20),
        Parameters(top_p=0.999),
        Parameters(typical_p=0.99),
    ):
        sampler = sampler_for(700, [Parameters(**{**vars(params), "seed": i}) for i in range(64)])
        drawn = set(sample(sampler, logits).token_ids.tolist())
        assert drawn <= {3, 650, 699}
        assert len(drawn) > 1


def test_only_allowed_tokens_are_drawn_and_other_rows_are_free():
    logits = peaked_logits(4, 1000)
    free = Parameters(greedy=True)
    sequences = [
        Parameters(greedy=True, allowed_token_ids=[7, 900, 7, 1000]),
        free,
        Parameters(temperature=50.0, allowed_token_ids=[3]),
        Parameters(greedy=True, allowed_token_ids=[5, 6], logit_bias_tokens=[5, 8], logit_bias_values=[100.0, 1e6]),
    ]
    tokens = sample(sampler_for(1000, sequences), logits).token_ids.tolist()
    assert tokens == [7 if logits[0, 7] >= logits[0, 900] else 900, int(logits[1].argmax()), 3, 5]


def test_draws_among_allowed_tokens_are_as_softmax_says():
    logits = torch.zeros(512, 100)
    logits[:, 1] = 50.0
    sampler = sampler_for(100, [Parameters(seed=i, allowed_token_ids=[4, 9]) for i in range(512)])
    drawn = sample(sampler, logits).token_ids
    assert set(drawn.tolist()) == {4, 9}
    assert 180 < int((drawn == 4).sum()) < 332


def test_logprobs_do_not_know_of_allowed_tokens():
    logits = peaked_logits(1, 1000)
    output = sample(sampler_for(1000, [Parameters(greedy=True, allowed_token_ids=[3])], logprobs=True), logits)
    assert output.token_ids.tolist() == [3]
    np.testing.assert_allclose(output.logprobs, logits.log_softmax(1)[:, 3].numpy(), rtol=1e-5)


# --- bias and penalties ------------------------------------------------------------------------------------------


def test_penalties_and_biases_equal_the_naive_ones_over_many_steps():
    vocab_size, count, steps = 400, 24, 80
    rng = np.random.default_rng(3)
    params, prompts = [], []
    for i in range(count):
        biased = rng.choice(vocab_size, 5, replace=False).tolist()
        params.append(
            Parameters(
                greedy=True,
                repetition_penalty=float(rng.choice([1.0, 1.3, 0.8])),
                frequency_penalty=float(rng.choice([0.0, 0.5, -0.3])),
                presence_penalty=float(rng.choice([0.0, 0.7, -0.4])),
                logit_bias_tokens=biased if i % 3 == 0 else [],
                logit_bias_values=rng.normal(0, 5, 5).round(2).tolist() if i % 3 == 0 else [],
            )
        )
        prompts.append(rng.integers(0, vocab_size, int(rng.integers(1, 150))).tolist())
    generated: list[list[int]] = [rng.integers(0, vocab_size, i % 4).tolist() for i in range(count)]
    sampler = Sampler(count, vocab_size, "cpu")
    for i in range(count):
        sampler.admit(i, np.array(prompts[i] + generated[i], dtype=np.int32), len(prompts[i]), params[i])
    for step in range(steps):
        logits = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(step)) * 3
        expected = [int(penalized(logits[i], params[i], prompts[i], generated[i]).argmax()) for i in range(count)]
        tokens = sample(sampler, logits).token_ids.tolist()
        assert tokens == expected, f"step {step}"
        for i in range(count):
            generated[i].append(tokens[i])


def test_the_naive_repetition_penalty_is_that_of_transformers():
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1))
    tokens = [4, 8, 8, 90, 4]
    expected = repetition_by_transformers(logits, 1.4, tokens)
    assert torch.equal(penalized(logits, Parameters(repetition_penalty=1.4), tokens[:2], tokens[2:]), expected)


def test_a_bias_makes_or_forbids_a_token_and_adds_up_when_named_twice():
    logits = torch.zeros(3, 100)
    params = [
        Parameters(greedy=True, logit_bias_tokens=[42], logit_bias_values=[100.0]),
        Parameters(greedy=True, logit_bias_tokens=[0, 1], logit_bias_values=[-100.0, -100.0]),
        Parameters(greedy=True, logit_bias_tokens=[7, 8, 8], logit_bias_values=[1.5, 1.0, 1.0]),
    ]
    assert sample(sampler_for(100, params), logits).token_ids.tolist() == [42, 2, 8]


def test_tokens_outside_the_vocabulary_do_not_count():
    sampler = Sampler(2, 50, "cpu")
    params = Parameters(
        greedy=True, repetition_penalty=2.0, logit_bias_tokens=[50, 4_000_000], logit_bias_values=[9.0, 9.0]
    )
    sampler.admit(0, np.array([50, 60, 49], dtype=np.int32), 3, params)
    sampler.admit(1, np.array([50, 60], dtype=np.int32), 2, params)
    logits = torch.ones(2, 50)
    logits[:, 49] = 1.5
    assert sample(sampler, logits).token_ids.tolist() == [0, 49]
    assert sample(sampler, logits).token_ids.tolist() == [1, 0]


def test_a_reused_id_remembers_nothing():
    sampler = Sampler(1, 20, "cpu")
    heavy = Parameters(greedy=True, presence_penalty=2.0, logit_bias_tokens=[3], logit_bias_values=[50.0])
    sampler.admit(0, np.array([1], dtype=np.int32), 1, heavy)
    logits = torch.arange(20, dtype=torch.float32)[None]
    assert sample(sampler, logits).token_ids.tolist() == [3]
    sampler.release([0])
    sampler.admit(0, np.array([1], dtype=np.int32), 1, Parameters(greedy=True, presence_penalty=2.0))
    assert sample(sampler, logits).token_ids.tolist() == [19]
    sampler.admit(0, np.array([1], dtype=np.int32), 1, Parameters(greedy=True))
    assert sample(sampler, logits).token_ids.tolist() == [19]


# --- the shortest length -----------------------------------------------------------------------------------------


def test_end_tokens_are_forbidden_as_in_the_naive_form_until_a_sequence_is_long_enough():
    vocab_size, count, steps = 300, 18, 12
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, vocab_size, i % 5 + 1).tolist() for i in range(count)]
    params = [
        Parameters(
            greedy=True,
            repetition_penalty=1.2 if i % 4 == 0 else 1.0,
            logit_bias_tokens=[11] if i % 3 == 0 else [],
            logit_bias_values=[60.0] if i % 3 == 0 else [],
            first_end_position=len(prompts[i]) + i % 9 if i % 9 else 0,
            end_token_ids=[11, 40, 299][: i % 3 + 1] if i % 9 else [],
        )
        for i in range(count)
    ]
    generated: list[list[int]] = [rng.integers(0, vocab_size, i % 3).tolist() for i in range(count)]
    sampler = Sampler(count, vocab_size, "cpu")
    for i in range(count):
        sampler.admit(i, np.array(prompts[i] + generated[i], dtype=np.int32), len(prompts[i]), params[i])
    num_ends = 0
    for step in range(steps):
        logits = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(step))
        logits[:, [11, 40, 299]] += 5
        expected = [int(penalized(logits[i], params[i], prompts[i], generated[i]).argmax()) for i in range(count)]
        positions = [len(prompts[i]) + len(generated[i]) for i in range(count)]
        tokens = sample(sampler, logits, positions=positions).token_ids.tolist()
        assert tokens == expected, f"step {step}"
        for i in range(count):
            is_end = tokens[i] in params[i].end_token_ids
            assert not is_end or positions[i] >= params[i].first_end_position
            num_ends += is_end
            generated[i].append(tokens[i])
    assert num_ends > 50


@pytest.mark.parametrize("num_generated", [0, 2, 3, 4])
def test_the_naive_shortest_length_is_that_of_transformers(num_generated):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    prompt, generated = [4, 8], [9] * num_generated
    expected = shortest_length_by_transformers(logits, 3, [5, 7], prompt, generated)
    params = Parameters(first_end_position=len(prompt) + 3, end_token_ids=[5, 7])
    assert torch.equal(penalized(logits, params, prompt, generated), expected)


def test_a_draw_never_gives_a_forbidden_end_token_and_gives_it_afterwards():
    logits = torch.zeros(1, 700)
    logits[0, [3, 650]] = torch.tensor([12.0, 9.0])
    for settings in ({}, {"top_k": 20}, {"top_p": 0.9}, {"typical_p": 0.9}, {"min_p": 0.01}):
        params = [Parameters(first_end_position=5, end_token_ids=[3], seed=i, **settings) for i in range(64)]
        sampler = sampler_for(700, params)
        early = sample(sampler, logits.expand(64, -1), positions=np.full(64, 4)).token_ids
        assert 3 not in early.tolist()
        late = sample(sampler, logits.expand(64, -1), positions=np.full(64, 5)).token_ids
        assert 3 in late.tolist()


def test_each_position_of_drafts_has_the_shortest_length_of_its_own():
    sampler = sampler_for(100, [Parameters(greedy=True, first_end_position=6, end_token_ids=[42])])
    logits = torch.zeros(4, 100)
    logits[:, 42] = 1.0
    tokens = sample(sampler, logits, ids=[0, 0, 0, 0], positions=[4, 5, 6, 7]).token_ids
    assert tokens.tolist() == [0, 0, 42, 42]
    sampler.check_drafts(np.array([0]))


def test_logprobs_do_not_know_of_forbidden_end_tokens():
    params = Parameters(greedy=True, first_end_position=6, end_token_ids=[42])
    sampler = sampler_for(100, [params], logprobs=True, top_n=2)
    logits = torch.zeros(1, 100)
    logits[0, [42, 7]] = torch.tensor([5.0, 4.0])
    output = sample(sampler, logits, positions=[3])
    assert output.token_ids.tolist() == [7]
    assert output.top_ids.tolist() == [42, 7]
    np.testing.assert_allclose(output.logprobs, logits.log_softmax(1)[0, 7:8], atol=1e-5)


def test_end_tokens_outside_the_vocabulary_do_not_count():
    params = [Parameters(greedy=True, first_end_position=9, end_token_ids=ends) for ends in ([], [100], [100, 1, 1])]
    logits = torch.zeros(3, 100)
    logits[:, 1] = 1.0
    assert sample(sampler_for(100, params), logits).token_ids.tolist() == [1, 1, 0]


# --- failures ----------------------------------------------------------------------------------------------------


def test_a_row_without_a_distribution_fails_alone():
    params = mixed(64)
    logits = peaked_logits(64, 3000, seed=12)
    clean = sample(sampler_for(3000, params), logits).token_ids
    broken = {0: torch.nan, 9: torch.nan, 10: torch.inf, 27: -torch.inf, 62: torch.nan}
    logits[[0, 62], 2999] = torch.nan
    logits[9] = torch.nan
    logits[10, 5] = torch.inf
    logits[27] = -torch.inf
    output = sample(sampler_for(3000, params, logprobs=True, top_n=3), logits)
    assert np.nonzero(output.failed)[0].tolist() == sorted(broken)
    healthy = torch.tensor([row not in broken for row in range(64)])
    assert torch.equal(output.token_ids[healthy], clean[healthy])
    assert np.isfinite(output.logprobs[healthy.numpy()]).all()
    assert output.num_top[healthy.numpy()].tolist() == [3] * int(healthy.sum())
    assert np.isfinite(output.top_logprobs).all()


def test_a_step_in_which_every_row_fails_is_answered():
    output = sample(sampler_for(100, mixed(8), logprobs=True, top_n=2), torch.full((8, 100), torch.nan))
    assert output.failed.all()
    assert output.num_top.tolist() == [0] * 8
    assert len(output.top_ids) == 0


def test_an_empty_step_gives_an_empty_answer():
    output = sample(sampler_for(100, []), torch.zeros(0, 100))
    assert len(output.token_ids) == 0


# --- log-probabilities -------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_raw_distribution_for_rows_that_report_them():
    vocab_size = 5003
    params = mixed(16)
    logits = peaked_logits(16, vocab_size, seed=13)
    sampler = Sampler(16, vocab_size, "cpu")
    for i in range(16):
        sampler.admit(i, np.array([1, 2, 3], dtype=np.int32), 3, params[i], logprobs=i % 2 == 0, top_n=i % 5)
    output = sample(sampler, logits)
    reference = logits.double().log_softmax(1)
    asked = np.array([i % 2 == 0 or i % 5 > 0 for i in range(16)])
    chosen = reference.gather(1, output.token_ids[:, None])[:, 0].numpy()
    np.testing.assert_allclose(output.logprobs[asked], chosen[asked], atol=1e-4)
    assert np.isnan(output.logprobs[~asked]).all()
    assert output.num_top.tolist() == [i % 5 for i in range(16)]
    expected_ids = np.concatenate([reference[i].topk(i % 5).indices.numpy() for i in range(16)])
    expected_logprobs = np.concatenate([reference[i].topk(i % 5).values.numpy() for i in range(16)])
    assert output.top_ids.tolist() == expected_ids.tolist()
    np.testing.assert_allclose(output.top_logprobs, expected_logprobs, atol=1e-4)


def test_top_logprobs_are_left_out_when_no_row_reports_them():
    output = sample(sampler_for(100, [Parameters(greedy=True)] * 3, logprobs=True), torch.randn(3, 100))
    assert output.logprobs is not None
    assert output.num_top is None
    assert output.top_ids is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompt_logprobs_equal_log_softmax_across_chunks(dtype):
    logits = peaked_logits(300, 20_000, seed=14).to(dtype)
    token_ids = torch.randint(0, 20_000, (300,), generator=torch.Generator().manual_seed(1))
    expected = logits.double().log_softmax(1).gather(1, token_ids[:, None])[:, 0]
    torch.testing.assert_close(token_logprobs(logits, token_ids).double(), expected, atol=1e-4, rtol=0)
    assert len(token_logprobs(logits[:0], token_ids[:0])) == 0


@pytest.mark.parametrize(("count", "vocab"), [(1, 20_000), (20, 20_000), (7, 7)])
def test_the_most_likely_tokens_come_in_order_across_chunks(count, vocab):
    logits = peaked_logits(300, vocab, seed=15)
    logits[5, 2:5] = logits[5].max() + 1  # equal tokens come in the order of their ids
    ids, logprobs = best_logprobs(logits, count)
    expected = logits.double().log_softmax(1)
    order = expected.sort(stable=True, dim=1, descending=True).indices[:, :count]
    assert torch.equal(ids, order)
    torch.testing.assert_close(logprobs.double(), expected.gather(1, order), atol=1e-4, rtol=0)
    assert best_logprobs(logits[:0], count)[0].shape == (0, count)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_tokens_alone_and_among_others():
    params = mixed(64)
    logits = peaked_logits(64, 50_257, seed=2).cuda()
    sampler = Sampler(64, 50_257, "cuda")
    for i, item in enumerate(params):
        sampler.admit(i, np.zeros(1, dtype=np.int32), 1, item, logprobs=True, top_n=2)
    together = sample(sampler, logits).token_ids
    for i, item in enumerate(params):
        sampler.admit(i, np.zeros(1, dtype=np.int32), 1, item)
        assert sample(sampler, logits[i : i + 1], [i]).token_ids[0] == together[i]
