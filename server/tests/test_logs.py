"""Tests that log lines are JSON without characters that control a terminal."""

import json

import pytest
from loguru import logger

from gridwork_server import logs


def test_terminal_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info")
    nasty = "\x1b[2J\x9b\x7f\u202e\u2028 ü"
    logger.bind(field=nasty).info("{}", nasty)
    written = capsys.readouterr().err
    assert not [c for c in written.rstrip("\n") if not (c.isprintable())]
    assert json.loads(written)["message"] == nasty
    assert json.loads(written)["fields"]["field"] == nasty
