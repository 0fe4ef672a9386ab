"""The whole check runs on a CPU, so that the command itself does not rot. Kernels run in Triton's interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest
from gpu_check import results
from gpu_check.part.profile import waiting
from gpu_check.parts import PARTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)
def test_a_dry_run_passes_all_parts_that_a_cpu_can_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpu_check", "--dry-run", "--no-pack", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT / "gpu", capture_output=True, text=True, check=False)
    logs = "".join(file.read_text()[-2000:] for file in sorted(tmp_path.glob("*.log"))) if done.returncode else ""
    assert done.returncode == 0, done.stdout + done.stderr + logs
    expected = [part for part in PARTS if part.in_dry_run]
    assert [part.number for part in expected] == [1, 2, 3, 5, 6, 7]
    for part in expected:
        result = results.read(results.path_of(tmp_path, part.label))
        assert result is not None and result.state == results.PASSED, part
        assert result.checks, part
    assert (tmp_path / "table.txt").read_text().strip() in done.stdout


def test_pauses_between_kernels_are_counted_once_and_only_from_a_length_on() -> None:
    # A pause of 3, which one kernel after the other takes; then one of 20; then a kernel within another one.
    spans = [(0.0, 10.0), (13.0, 20.0), (40.0, 60.0), (45.0, 50.0)]
    assert waiting(spans[::-1]) == (20.0, 37.0)
    assert waiting([]) == (0.0, 0.0)
