"""Keyword arguments as flags of the launcher, and what the launcher says about them."""

from pathlib import Path
from typing import Any

import pytest

from gridwork import EngineDied, InvalidRequest, program


def flags(**options: Any) -> list[str]:
    return program.arguments("m", options)


def test_options_become_flags() -> None:
    found = flags(
        dtype="float32",
        tensor_parallel_size=2,
        trust_remote_code=True,
        enable_prefix_caching=False,
        served_model_name=["a", "b"],
        huggingface_hub_cache=Path("/c"),
        revision=None,
    )
    for flag in (
        "--model-id=m",
        "--parent-link",
        "--dtype=float32",
        "--tensor-parallel-size=2",
        "--trust-remote-code=true",
        "--enable-prefix-caching=false",
        "--served-model-name=a",
        "--served-model-name=b",
        "--huggingface-hub-cache=/c",
    ):
        assert flag in found, flag
    assert not any("revision" in flag for flag in found)


def test_there_is_room_for_twice_as_many_requests_as_run() -> None:
    assert "--max-concurrent-requests=256" in flags()
    assert "--max-concurrent-requests=2000" in flags(max_num_seqs=1000)
    given = flags(max_concurrent_requests=3)
    assert [flag for flag in given if "concurrent" in flag] == ["--max-concurrent-requests=3"]


@pytest.mark.parametrize("name", ["port", "hostname", "parent_link", "help", "version"])
def test_flags_of_a_program_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        flags(**{name: "x"})
    assert refused.value.field == name


def test_values_that_cannot_be_flags_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="dict") as refused:
        flags(speculative_config={"method": "ngram"})
    assert refused.value.field == "speculative_config"


def test_what_the_launcher_says_is_about_an_argument() -> None:
    text = "error: unexpected argument '--max-modle-len' found\n\nUsage: gridwork [OPTIONS]\n"
    refused = program.refusal(text, {"max_modle_len": 5})
    assert refused.field == "max_modle_len" and str(refused) == "unexpected argument '--max-modle-len' found"
    text = "error: invalid value 'x' for '--num-shard <N>', given as '--tp': invalid digit"
    assert program.refusal(text, {"tp": "x"}).field == "tp"
    assert program.refusal("error: --model-id is missing", {}).field == "model"


def test_a_launcher_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDWORK_BIN", "/no/such/gridwork")
    with pytest.raises(EngineDied, match="/no/such/gridwork"):
        program.find()


def test_a_flag_that_is_typed_takes_the_place_of_a_default() -> None:
    arguments = program.arguments("m", {}, ["--max_concurrent_requests=3", "--payload-limit", "9"])
    assert arguments[-3:] == ["--max_concurrent_requests=3", "--payload-limit", "9"]
    assert not [each for each in arguments[:-3] if "concurrent" in each or "payload" in each]
