import argparse
import json
import struct
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from suite import plots
from suite.models import read_bytes, weight_bytes
from suite.report import document, targets_table
from suite.results import (
    DATA,
    PAGES,
    Contestant,
    Part,
    Place,
    Sample,
    add_place_options,
    place,
    places,
    read,
    spread,
    write,
)
from suite.svg import tick_step
from suite.targets import all_targets, roofline_ms

MACHINE = {"cpu": "a cpu", "cores": 2, "flags": ["avx2"], "memory_gib": 8}


def part(workload: str, contestants: list[Contestant], model: str = "smollm2-135m") -> Part:
    return Part(workload, model, "2026-01-01 00:00 UTC", MACHINE, 270_000_000, 23_040, [20.0, 18.0, 30.0], contestants)


def speeds(name: str, *tokens_per_s: float, level: int = 1) -> Contestant:
    samples = [
        Sample(round, level, tokens_per_s=value, ttft_ms=100, tpot_ms=20) for round, value in enumerate(tokens_per_s)
    ]
    return Contestant(name, "1.0", samples=samples)


def lines(parts: list[Part], figure: str) -> list[str]:
    return [line for line in targets_table(all_targets(parts)) if line.startswith(f"| {figure}")]


def test_spread_shows_the_median_and_the_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.0 (1.0–3.0)"
    assert spread([2.0]) == "2.0" and spread([]) == "–"


def test_written_results_are_read_back(tmp_path: Path) -> None:
    data = tmp_path / "data/here.json.gz"
    written = part("chat", [speeds("gridwork", 1.5, 2.5), Contestant("vllm-native", failure="no such wheel")])
    write([written], data)
    assert read(data) == [written]


def test_a_run_replaces_its_own_parts_and_keeps_the_others(tmp_path: Path) -> None:
    data = tmp_path / "here.json.gz"
    chat, start = part("chat", [speeds("gridwork", 1)]), part("start", [])
    write([start, chat], data)
    again = part("chat", [speeds("gridwork", 2)])
    write([again], data)
    assert read(data) == [again, start]
    before = data.read_bytes()
    write([start], data)
    assert data.read_bytes() == before


def test_the_folder_option_overrides_the_machine() -> None:
    parser = argparse.ArgumentParser()
    add_place_options(parser)
    assert place(parser.parse_args(["--folder", "/try"])) == Place(Path("/try/results.json.gz"), Path("/try"))
    assert place(parser.parse_args(["--machine", "mine"])) == Place(DATA / "mine.json.gz", PAGES / "mine")
    assert place(parser.parse_args([])).folder == PAGES / "local"
    assert [found.folder.name for found in places(parser.parse_args([]))] >= ["amx"]


def test_plots_are_deterministic_and_replace_old_ones(tmp_path: Path) -> None:
    two = Contestant("a<b", samples=[*speeds("", 50, 60, level=1).samples, *speeds("", 90, level=8).samples])
    parts = [part("chat", [two]), part("decode", [speeds("gridwork", 1)]), part("start", [speeds("gridwork", 1)])]
    parts[2].contestants[0].samples = [Sample(0, 1, ready_s=3.0)]
    (tmp_path / "old.svg").touch()
    names = plots.draw(parts, tmp_path)
    assert names == {"smollm2-135m-chat.svg", "smollm2-135m-start.svg"} == {file.name for file in tmp_path.iterdir()}
    first = {name: (tmp_path / name).read_text() for name in names}
    for text in first.values():
        ElementTree.fromstring(text)
    plots.draw(parts, tmp_path)
    assert first == {name: (tmp_path / name).read_text() for name in names}


@pytest.mark.parametrize(("highest", "step"), [(5, 1), (5.1, 2), (26, 10), (0.3, 0.1), (4046, 1000), (0, 1)])
def test_an_axis_has_at_most_five_steps(highest: float, step: float) -> None:
    assert tick_step(highest) == pytest.approx(step)


def test_throughput_is_compared_with_vllms_better_median() -> None:
    contestants = [speeds("gridwork", 10, 60, 26), speeds("vllm-native", 5), speeds("vllm-transformers", 20)]
    [line] = lines([part("chat", contestants)], "tokens per second, 1 client, smollm2-135m")
    assert line.endswith("| best of vLLM: vllm-transformers | 1.3 times | 1.30 times (26 against 20) | yes |")
    contestants[2] = speeds("vllm-transformers", 21)
    [line] = lines([part("chat", contestants)], "tokens per second, 1 client, smollm2-135m")
    assert line.endswith("| 1.24 times (26 against 21) | **no** |")


def test_tables_have_the_reason_of_a_failed_peer() -> None:
    failed = [Contestant(name, failure="ended with status 1: no|pe") for name in ("vllm-transformers", "vllm-native")]
    parts = [part("chat", [speeds("gridwork", 10), *failed])]
    text = document(parts)
    assert "vllm-native: **not measured**, `ended with status 1: no\\|pe`" in text
    [line] = lines(parts, "tokens per second, 1 client, smollm2-135m")
    assert "– (vllm-transformers: ended with status 1: no\\|pe)" in line


def test_missing_measurements_are_named() -> None:
    assert all("– (not measured" in line for line in targets_table(all_targets([]))[2:])


def test_offline_is_compared_at_the_batch_size_and_all_at_once() -> None:
    ours = Contestant("gridwork", samples=[*speeds("", 50, level=4).samples, *speeds("", 90, level=64).samples])
    found = lines([part("offline", [ours, speeds("generate", 25, level=4)])], "offline")
    assert found[0].startswith(
        "| offline, 4 at a time, smollm2-135m | `generate()`, batches of 4 | 2.3 times | 2.00 times"
    )
    assert found[0].endswith("(50 against 25) | **no** |")
    assert found[1].endswith("| 3.60 times (90 against 25) | yes |")


def test_the_roofline_is_bytes_over_median_bandwidth() -> None:
    assert roofline_ms(part("chat", [])) == pytest.approx(13.5)
    assert roofline_ms(part("chat", []), kv_tokens=1000) == pytest.approx((270e6 + 23.04e6) / 20e6)


def test_memory_excludes_weights_and_cache() -> None:
    def peak(name: str, beyond_mib: int) -> Contestant:
        peak_bytes = 270_000_000 + (1 << 30) + (beyond_mib << 20)
        return Contestant(name, samples=[Sample(0, 25, peak_bytes=peak_bytes, kv_bytes=1 << 30)])

    [line] = lines([part("memory", [peak("gridwork", 400), peak("vllm-native", 1000)])], "memory")
    assert line.endswith("| 0.40 times (400 against 1000) | yes |")
    # A peer in float32 has twice the weight bytes.
    wide = peak("vllm-native", 1000)
    wide.dtype, wide.samples = (
        "float32",
        [replace(wide.samples[0], peak_bytes=(wide.samples[0].peak_bytes or 0) + 270_000_000)],
    )
    parts = [part("memory", [peak("gridwork", 400), wide])]
    assert lines(parts, "memory") == [line]
    assert "vllm-native in float32, since this processor has no AVX-512" in document(parts)


def test_context_growth_is_relative_to_bytes_read() -> None:
    def at(tokens: int, tpot_ms: float) -> Sample:
        return Sample(0, tokens, tpot_ms=tpot_ms, prompt_tokens=tokens)

    weights, kv = 270_000_000, 23_040
    grown = (weights + 8000 * kv) / (weights + 100 * kv)
    same = Contestant("gridwork", samples=[at(100, 10), at(8000, 10 * grown)])
    [line, _other] = lines([part("context", [same])], "decode at 128 to 8k")
    assert line.endswith("| 1.00 times | yes |")
    faster = Contestant("gridwork", samples=[at(100, 10), at(8000, 20 * grown)])
    [line, _other] = lines([part("context", [faster])], "decode at 128 to 8k")
    assert line.endswith("| 2.00 times | **no** |")


def test_answers_that_are_too_short_are_marked() -> None:
    short = Contestant("gridwork", samples=[Sample(0, 1, tokens_per_s=10, missing_tokens=7)])
    assert "10.0, 7 tokens too few" in document([part("chat", [short])])


def test_a_token_of_a_mixture_reads_only_chosen_experts(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "model.layers.0.mlp.experts.3.up_proj.weight": {"dtype": "BF16", "shape": [20], "data_offsets": [0, 40]},
        "model.layers.0.mlp.gate.weight": {"dtype": "BF16", "shape": [5], "data_offsets": [40, 50]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(50))
    for name in ("num_experts", "num_local_experts"):
        (tmp_path / "config.json").write_text(json.dumps({name: 8, "num_experts_per_tok": 2}))
        assert weight_bytes(tmp_path) - read_bytes(tmp_path) == 30
    (tmp_path / "config.json").write_text("{}")
    assert read_bytes(tmp_path) == weight_bytes(tmp_path)
    mixture = Part("chat", "moe-1.3b", "", {}, 4000, 0, bandwidth_gb_s=[1.0], read_bytes=1000)
    assert roofline_ms(mixture) == 1e-3
