"""Short forms of errors and of lists of names."""

import pytest

from gridwork_server.text import one_line, some


@pytest.mark.parametrize(
    ("error", "typed", "expected"),
    [
        (ValueError("two\n  lines"), False, "two lines"),
        (ValueError("two\n  lines"), True, "ValueError: two lines"),
        (ValueError("two\n  lines"), None, "two lines"),
        (KeyError("x"), None, "KeyError: 'x'"),
        (MemoryError(), False, "MemoryError"),
        (ValueError(), None, "ValueError"),
    ],
)
def test_an_error_becomes_one_line(error: Exception, typed: bool | None, expected: str) -> None:
    assert one_line(error, typed=typed) == expected


def test_a_long_message_is_cut() -> None:
    assert one_line(ValueError("x" * 1000)) == "x" * 600 + " …"


def test_three_names_are_listed_and_the_others_counted() -> None:
    assert some(["b", "a"]) == "a, b"
    assert some("dcbae") == "a, b, c and 2 more"
