"""Files of batches: what is a request, and what an output says is done."""

import json
from pathlib import Path

import pytest

from gridwork import InvalidRequest
from gridwork.tools import run_batch


def request(**changes: object) -> str:
    entry = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}
    return json.dumps(entry | changes)


def test_a_line_is_a_request() -> None:
    line = run_batch.read_line(request(), 3)
    assert (line.custom_id, line.url, line.body, line.wrong) == ("a", "/v1/completions", {"prompt": "x"}, None)
    assert line.key == "a"


@pytest.mark.parametrize(
    ("text", "words", "key"),
    [
        ("{", "not JSON", 3),
        ("[]", "custom_id", 3),
        (request(custom_id=5), "custom_id", 3),
        (request(method="GET"), "method", "a"),
        (request(url="/v1/fine_tuning"), "/v1/completions", "a"),
        (request(body=None), "body", "a"),
        (request(body={"stream": True}), "stream", "a"),
    ],
)
def test_what_is_no_request_says_why(text: str, words: str, key: str | int) -> None:
    line = run_batch.read_line(text, 3)
    assert line.wrong is not None and words in line.wrong and line.key == key


def test_an_output_says_what_is_done_and_loses_a_line_that_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert run_batch.answered(path) == set()
    whole = json.dumps({"custom_id": "a", "error": None}) + "\n"
    whole += json.dumps({"custom_id": None, "error": {"line": 7}}) + "\n"
    for torn in ("", '{"custom_id": "b"', json.dumps({"custom_id": "b", "error": None})):
        path.write_text(whole + torn)
        assert run_batch.answered(path) == {"a", 7}
        assert path.read_text() == whole


def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("my notes\nof today\n")
    with pytest.raises(InvalidRequest, match="line 1"):
        run_batch.answered(path)
    assert path.read_text() == "my notes\nof today\n"


def test_ids_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f"{request()}\n\n{request(custom_id='b')}\n")
    assert run_batch.counted(path, {"b"}) == (2, 1)
    path.write_text(f"{request()}\n{request()}\n")
    with pytest.raises(InvalidRequest, match="line 2"):
        run_batch.counted(path, set())
