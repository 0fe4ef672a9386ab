"""Figures of a load: what is read of a stream, and how it is summed up."""

import json
import math
from array import array

import pytest

from gridwork import InvalidRequest
from gridwork.bench.measure import Result, Slo, Spread, figures
from gridwork.bench.stream import AnswerReader


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chat(**delta: object) -> bytes:
    return event(choices=[{"index": 0, "delta": delta, "finish_reason": None}])


STREAM = [
    chat(role="assistant", content=""),
    chat(reasoning_content="so"),
    b": keep-alive\n\n",
    chat(content='a "text":"" and "usage":{} and "error":"x" inside'),
    chat(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}]),
    event(choices=[{"index": 0, "text": " b"}]),
    event(choices=[{"index": 0, "text": "", "finish_reason": "stop"}], usage=None, error=None),
    event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 9}),
    b"data: [DONE]\n\n",
]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_chunks_with_tokens_and_usage_are_found_however_a_stream_is_cut(size: int) -> None:
    reader, data = AnswerReader(), b"".join(STREAM)
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size], at / 1000)
    assert (reader.num_chunks, reader.is_done, reader.error) == (4, True, None)
    assert reader.usage == {"prompt_tokens": 7, "completion_tokens": 9}
    assert len(reader.gaps_s) == 3 and sum(reader.gaps_s) == pytest.approx(reader.last_s - (reader.first_s or 0))


def test_compact_json_is_read_alike_and_an_error_is_kept() -> None:
    reader = AnswerReader()
    reader.feed(b'data: {"choices":[{"text":""}]}\n\ndata: {"choices":[{"text":"x"}]}\n\n', 1.0)
    assert (reader.num_chunks, reader.first_s) == (1, 1.0)
    reader.feed(b'data: {"error":{"message":"the shard died"}}\n\n', 2.0)
    assert reader.error == "the shard died" and not reader.is_done


def result(ttft_s: float, tokens: int, tpot_s: float, error: str | None = None) -> Result:
    last = 1 + ttft_s + (tokens - 1) * tpot_s
    gaps = array("d", [tpot_s] * (tokens - 1))
    return Result(1.0, 1 + ttft_s, last, last + 0.5, tokens, tokens, True, 10, 4, gaps, error)


def test_figures_sum_up_results() -> None:
    results = [result(0.1, 11, 0.02), result(0.3, 21, 0.06), result(0.2, 1, 0.0), result(9.0, 2, 9.0, "status 500: no")]
    found = figures(results, 2.0, Slo.read("ttft=250 tpot=50"))
    assert (found.num_requests, found.num_failed, found.errors) == (4, 1, {"status 500: no": 1})
    assert (found.requests_per_s, found.output_tokens_per_s) == (1.5, 17.5)
    assert (found.prompt_tokens, found.cached_tokens, found.output_count) == (40, 16, "usage")
    ttft, tpot = found.ttft_ms, found.tpot_ms
    assert [ttft.p50, ttft.p90, ttft.p99] == pytest.approx([200, 300, 300]) and ttft.mean == pytest.approx(200)
    # An answer of one token has no time for each further token.
    assert [tpot.mean, tpot.p50] == pytest.approx([40, 20])
    assert found.itl_ms.p50 == pytest.approx(60) and found.e2e_ms.p50 == pytest.approx(100 + 200 + 500)
    assert (found.good_requests, found.goodput_per_s) == (2, 1.0)


def test_without_answers_there_are_no_times_and_chunks_count_without_usage() -> None:
    found = figures([Result(0.0, error="cannot connect")], 1.0, None)
    assert found.ttft_ms == Spread(None, None, None, None) and found.goodput_per_s is None
    counted = result(0.1, 3, 0.1)
    counted.has_usage = False
    assert figures([counted], 1.0, None).output_count == "chunks"


def test_percentiles_are_by_nearest_rank() -> None:
    assert Spread.of([math.nan, *map(float, range(100, 0, -1))]) == Spread(50.5, 50, 90, 99)


@pytest.mark.parametrize("text", ["", "ttft", "ttft=x", "ttft=0", "tpot=inf", "speed=3", "ttft=1 ttft=2"])
def test_an_slo_that_cannot_be_read_names_the_flag(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--slo"):
        Slo.read(text)
