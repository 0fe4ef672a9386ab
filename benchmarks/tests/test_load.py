import pytest
from suite.load import Answer, Turn, percentile, request_body, summary


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


def test_times_of_answers_that_do_not_count_are_left_out() -> None:
    answers = [Answer(0.1, 0.010, 11, 20, ""), Answer(0.9, 0.030, 21, 40, "", is_counted=False)]
    load = summary(answers, seconds=1.0)
    assert load.tokens_per_s == pytest.approx(32)
    assert load.ttft_ms == load.ttft_p99_ms == pytest.approx(100) and load.tpot_ms == pytest.approx(10)


def test_a_request_has_its_schema_and_nothing_that_only_some_servers_know() -> None:
    plain = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert set(request_body("m", "text", Turn("text", 4))) == plain
    body = request_body("m", "text", Turn("text", 4, schema='{"type": "integer"}'))
    assert set(body) == plain | {"response_format"}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "integer"}
