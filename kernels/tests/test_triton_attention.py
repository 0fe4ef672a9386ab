"""Runs the Triton kernels' tests in processes of their own: whether Triton interprets is decided at its import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "tests",
    [
        pytest.param("interpreted_triton_attention.py", id="they give what the reference gives"),
        pytest.param("compiled_triton_attention.py", id="they are compiled for GPUs"),
    ],
)
def test_the_triton_kernels(tests: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name(tests))]
    # What was compiled before is not to be taken for what can be compiled now.
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:]
