"""The list of commands that the launcher has is that of the parser."""

import json
from pathlib import Path

import pytest

from gridwork.__main__ import main
from gridwork.tools import listing

FILE = Path(__file__).parents[2] / "settings/src/commands.json"


def test_the_launchers_list_is_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FILE.read_text() == listing.text(), "run `make docs`"
    assert listing.main(["--check", str(FILE)]) == 0
    (tmp_path / "old.json").write_text("[]\n")
    assert listing.main(["--check", str(tmp_path / "old.json")]) == 1
    assert "make docs" in capsys.readouterr().err
    assert listing.main([str(tmp_path / "old.json")]) == 0
    assert (tmp_path / "old.json").read_text() == listing.text()


def test_every_command_is_listed_with_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {command["name"]: command for command in json.loads(listing.text())}
    for name, command in listed.items():
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        said = capsys.readouterr().out
        assert all(f"--{flag['name']}" in said for flag in command["flags"])
    flags = {flag["name"]: flag for flag in listed["bench"]["flags"]}
    assert flags["api"]["value"]["choices"] == ["chat", "completions"]
    assert flags["prompts"]["value"]["is_path"] and flags["no-ignore-eos"]["value"] is None
    assert listed["run-batch"]["takes_server_flags"] and not listed["env"]["takes_server_flags"]
