"""Settings that a shard reads, and those that it refuses by the name of the field."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gridwork_server.cli import main
from gridwork_server.config import SettingsError, ShardConfig, read_settings

from .shard_process import settings_json


def read(**changes: Any) -> ShardConfig:
    return read_settings(settings_json(Path("m"), **changes), rank=1, socket="s")


def test_fields_have_the_types_of_the_dataclass() -> None:
    config = read(cuda_graphs=[1, 2], cuda_memory_fraction=1, meeting_file="f", quantize="int8")
    assert (config.rank, config.socket, config.model_path) == (1, "s", Path("m"))
    assert config.cuda_graphs == (1, 2)
    assert isinstance(config.cuda_memory_fraction, float)
    assert config.meeting_file == Path("f")
    assert config.quantize == "int8"


def test_defaults_survive_the_way_through_json() -> None:
    expected = ShardConfig(Path("m"), "s", rank=1, kv_cache_memory_bytes=1 << 24, cpu_threads=1)
    assert asdict(read()) == asdict(expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"zip": True}, "unknown field `zip`"),
        ({"rank": 1}, "unknown field `rank`"),
        ({"block_size": "16"}, '`block_size` is "16", which is not of the type int'),
        ({"block_size": True}, "`block_size` is true"),
        ({"fuse": 1}, "`fuse` is 1"),
        ({"model_path": None}, "`model_path` is null"),
        ({"cuda_graphs": 8}, "`cuda_graphs` is 8"),
        ({"cuda_graphs": ["8"]}, '`cuda_graphs` is "8"'),
        ({"revision": 3}, "`revision` is 3"),
        ({"model_impl": "fast"}, '`model_impl` is "fast", which is none of auto, paged, batched, solo'),
        ({"quantize": "gptq"}, '`quantize` is "gptq", which is none of int8, int4'),
    ],
)
def test_settings_of_another_version_are_refused_by_field(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(**changes)
    assert expected in str(caught.value)
    assert "install all programs from one build" in str(caught.value)


def test_a_missing_field_is_refused_even_if_it_has_a_default() -> None:
    given = json.loads(settings_json(Path("m")))
    del given["revision"]
    with pytest.raises(SettingsError, match="missing field `revision`"):
        read_settings(json.dumps(given), 0, "s")


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"'])
def test_text_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="JSON"):
        read_settings(text, 0, "s")


def test_a_refusal_is_logged_as_the_reason_of_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.json"
    for arguments, expected in (("{}", "missing field `model_path`"), (None, "cannot be read")):
        file.unlink(missing_ok=True)
        if arguments is not None:
            file.write_text(arguments)
        assert main(["serve", "--settings", str(file), "--socket", "s"]) == 1
        record = json.loads(capsys.readouterr().err)
        assert record["fatal"] and expected in record["message"]
