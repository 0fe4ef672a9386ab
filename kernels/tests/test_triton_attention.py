"""Runs the Triton kernels' tests in separate processes: Triton chooses its interpreter when it is imported."""

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
    # An empty cache, so that kernels are compiled anew.
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:]
