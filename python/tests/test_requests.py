"""Answers of the HTTP API as results."""

import base64
import struct

import pytest

from gridwork import Logprob, requests
from gridwork.client import Address, _error_of, is_address
from gridwork.errors import InvalidRequest, RequestFailed


def entry(logprob: float, rank: int | None, text: str) -> dict[str, object]:
    return {"logprob": logprob, "rank": rank, "decoded_token": text}


def test_an_answer_becomes_a_result() -> None:
    answer = {
        "choices": [
            {
                "index": 0,
                "text": " b",
                "token_ids": [7, 8],
                "finish_reason": "stop",
                "stop_reason": 8,
                "prompt_token_ids": [1, 2],
                "logprobs_by_id": [
                    {"7": entry(-0.5, 1, " b"), "9": entry(-1.0, 2, "c")},
                    {"8": entry(-0.25, None, "")},
                ],
                "prompt_logprobs": [None, {"2": entry(-2.0, 1, "a")}],
            }
        ],
        "usage": {"prompt_tokens_details": {"cached_tokens": 1}},
    }
    output = requests.output_of(answer, {"x-queue-time": "500"}, "3", "a", 10.0)
    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("3", "a", [1, 2])
    [choice] = output.outputs
    assert choice.stop_reason == 8
    assert choice.token_ids == [7, 8] and choice.cumulative_logprob == -0.75 and choice.finished()
    assert choice.logprobs is not None and choice.logprobs[0][7] == Logprob(-0.5, 1, " b")
    assert output.prompt_logprobs == [None, {2: Logprob(-2.0, 1, "a")}]
    assert output.num_cached_tokens == 1
    assert output.metrics is not None and output.metrics.time_in_queue == 0.5


def test_a_stream_grows_and_earlier_pieces_stay_as_they_were() -> None:
    growing = requests.Growing("0", "p", 2)
    chunks = [
        {"choices": [{"index": 1, "text": "a", "token_ids": [1], "prompt_token_ids": [5], "finish_reason": None}]},
        {"choices": [{"index": 1, "text": "b", "token_ids": [2, 3], "finish_reason": "stop", "stop_reason": "!"}]},
        {"choices": [{"index": 0, "text": "c", "token_ids": [4], "finish_reason": "length"}]},
        {"choices": [], "usage": {"completion_tokens": 4}},
    ]
    pieces = [growing.add(chunk) for chunk in chunks]
    assert [piece.outputs[1].text for piece in pieces] == ["a", "ab", "ab", "ab"]
    assert [piece.outputs[1].delta for piece in pieces] == ["a", "b", "", ""]
    assert [piece.finished for piece in pieces] == [False, False, False, True]
    assert pieces[0].outputs[1].token_ids == [1] and pieces[-1].outputs[1].token_ids == [1, 2, 3]
    assert pieces[-1].prompt_token_ids == [5]
    assert [piece.outputs[1].stop_reason for piece in pieces] == [None, "!", "!", "!"]
    assert pieces[-1].outputs[0].stop_reason is None


def test_pieces_of_calls_are_put_together() -> None:
    growing = requests.Growing("0", None, 1)
    deltas: list[dict[str, object]] = [
        {"role": "assistant", "tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    ]
    for delta in deltas:
        output = growing.add({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    message = output.outputs[0].message
    assert message is not None and message["role"] == "assistant"
    assert message["tool_calls"] == [
        {"type": "function", "id": "x", "function": {"name": "f", "arguments": '{"a": 1}'}}
    ]


def test_errors_of_both_dialects_have_field_and_code() -> None:
    body = {"error": {"message": "`n` is wrong", "param": "n", "code": "validation", "type": "x"}}
    error = _error_of(body, 400)
    assert isinstance(error, InvalidRequest) and (error.field, error.code) == ("n", "validation")
    error = _error_of({"error": "too long", "error_type": "Validation"}, 413)
    assert isinstance(error, InvalidRequest) and error.code == "Validation"
    error = _error_of("no JSON", 500)
    assert isinstance(error, RequestFailed) and error.status == 500


@pytest.mark.parametrize(
    ("text", "url", "socket"),
    [
        ("http://h:3000/", "http://h:3000", None),
        ("https://h/v1", "https://h", None),
        ("unix:/a/b", "http://gridwork", "/a/b"),
        ("unix:///a/b", "http://gridwork", "/a/b"),
    ],
)
def test_addresses_of_servers(text: str, url: str, socket: str | None) -> None:
    address = Address.read(text, None)
    assert is_address(text) and (address.url, address.socket) == (url, socket)
    assert not is_address("gpt2") and not is_address("/models/http")


def test_vectors_are_read_from_base64() -> None:
    assert requests.vector(base64.b64encode(struct.pack("<2f", 1.5, -2.0)).decode()) == [1.5, -2.0]
