"""Parts run one after the other, whatever becomes of each, and their results are on disk at once."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_check import __main__ as command
from gpu_check import parts, results, runner, table
from gpu_check.parts import PARTS, UnknownPart, choose
from gpu_check.results import Check, Figure, Result
from gpu_check.runner import Plan, limit_of

FAKE = (sys.executable, str(Path(__file__).with_name("fake_part.py")))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan whose parts are those of fake_part.py."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return Plan(tmp_path, environment, "cpu", True, FAKE)


@pytest.fixture
def ran(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> dict[str, Result]:
    """The results of parts that pass, raise, hang, die and fail, as the files have them."""
    monkeypatch.setattr(runner, "_GRACE_S", 0.3)
    short = [replace(part, limit_s=2.0 if part.name == "sampling" else 30.0) for part in PARTS[:6]]
    monkeypatch.setattr(runner, "_LEAST_S", 0.5)
    runner.run(short, plan)
    found = [results.read(results.path_of(plan.folder, part.label)) for part in short]
    return {result.name: result for result in found if result is not None}


def test_a_bad_part_does_not_stop_the_next(ran: dict[str, Result], plan: Plan) -> None:
    assert {name: result.state for name, result in ran.items()} == {
        "machine": results.PASSED,
        "attention": results.FAILED,
        "sampling": results.STOPPED,
        "graphs": results.FAILED,
        "conformance": results.FAILED,
        "server": results.PASSED,
    }
    assert ran["attention"].reason == "it ended without a result; see 2-attention.log"
    assert "out of memory" in (plan.folder / "2-attention.log").read_text()
    assert ran["sampling"].reason == "it was ended at its limit of 2 s"
    assert ran["graphs"].reason == "it was ended by signal SIGKILL"
    assert [check.problem for check in ran["conformance"].failed] == ["wrong"]


def test_results_are_known_before_later_parts_end(ran: dict[str, Result]) -> None:
    for name in ("attention", "sampling", "graphs"):
        (check,) = ran[name].checks
        assert check.detail == "the first part is passed", "also what a part found before it was ended is kept"


def test_a_part_that_hangs_is_ended_with_its_children(ran: dict[str, Result], plan: Plan) -> None:
    assert ran["sampling"].seconds < 10
    child = int((plan.folder / "child.pid").read_text())
    for _ in range(100):
        if not _is_running(child):
            return
        time.sleep(0.05)
    raise AssertionError("the child of the part still runs")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_parts_are_chosen_by_number_and_name_and_keep_their_order() -> None:
    assert choose("") == PARTS
    assert [part.number for part in choose("4 2")] == [2, 4]
    assert [part.number for part in choose("server,machine")] == [1, 6]
    with pytest.raises(UnknownPart, match=r'GPU_PARTS has "9".* 1 machine, 2 attention, .* 8 figures'):
        choose("2 9")


def test_an_unknown_part_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    assert command.main(["--parts", "graph", "--no-pack", "--results", str(folder)]) == 2
    assert 'GPU_PARTS has "graph"' in capsys.readouterr().err
    assert not folder.exists()


def test_the_time_there_is_is_shared_among_the_parts() -> None:
    assert limit_of(PARTS[1], PARTS[1:], None) == PARTS[1].limit_s
    total = sum(part.limit_s for part in PARTS)
    assert limit_of(PARTS[0], PARTS, total / 2) == pytest.approx(PARTS[0].limit_s / 2)
    assert limit_of(PARTS[-1], PARTS[-1:], 10_000) == PARTS[-1].limit_s, "a part has no use for more than its limit"


def test_a_part_without_time_is_skipped_with_the_reason(plan: Plan) -> None:
    (result,) = runner.run(PARTS[:1], replace(plan, until=time.monotonic() + 1))
    assert result.state == results.SKIPPED
    assert "give more --minutes" in result.reason
    assert results.read(results.path_of(plan.folder, PARTS[0].label)) == result


def test_the_table_has_at_most_60_lines_and_every_part() -> None:
    checks = [Check(f"check {i}", "differs from the reference " * 20) for i in range(200)]
    figures = [Figure(f"figure {i}", 0.5, "TB/s", "at least 80 %", False) for i in range(200)]
    found = [Result(part.number, part.name, part.title, checks=checks, figures=figures) for part in parts.PARTS]
    for kept in (found, [replace(result, figures=[]) for result in found], [replace(r, checks=[]) for r in found]):
        lines = table.lines(kept, "results")
        assert len(lines) <= table.MAX_LINES
        assert all(len(line) <= 160 for line in lines)
        assert [line.split()[1] for line in lines[1:9]] == [part.name for part in PARTS]
        assert any("more" in line for line in lines)
    few = table.lines([replace(found[0], checks=checks[:1], figures=figures[:2])], "results")
    starts = (
        "part",
        "1 machine",
        "checks that failed:",
        "  machine: check 0: differs",
        "figures:",
        "  figure 0",
        "  figure 1",
    )
    assert all(line.startswith(start) for line, start in zip(few, starts, strict=False))
    assert "(at least 80 %: NOT REACHED)" in few[5]
    assert few[7:] == ["details: results"]


def test_half_a_result_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "1-machine.json"
    path.write_text('{"number": 1, "na')
    assert results.read(path) is None
    result = Result(1, "machine", "title", checks=[Check("one")], figures=[Figure("two", 1.5, "s")], facts={"a": "b"})
    results.write(path, result)
    assert results.read(path) == result
    assert [file.name for file in tmp_path.iterdir()] == ["1-machine.json"]
