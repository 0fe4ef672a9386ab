import pytest
from suite.load import Answer, percentile, summary


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.99) == 99 and percentile(values, 0.5) == 50 and percentile([7.0], 0.99) == 7


def test_a_summary_counts_all_tokens_and_takes_medians() -> None:
    answers = [Answer(0.1, 0.010, 11, 20, ""), Answer(0.2, 0.030, 21, 40, ""), Answer(0.9, 0.0, 1, 30, "")]
    load = summary(answers, seconds=3.0)
    assert load.tokens_per_s == pytest.approx(11)
    assert load.ttft_ms == pytest.approx(200) and load.ttft_p99_ms == pytest.approx(900)
    # An answer of one token has no time between tokens.
    assert load.tpot_ms == pytest.approx(20)
    assert load.prompt_tokens == pytest.approx(30)
