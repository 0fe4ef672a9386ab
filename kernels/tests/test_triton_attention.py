"""Runs the tests of the Triton kernel in a process of their own: whether Triton interprets is decided at its import."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_triton_kernel_gives_what_the_reference_gives() -> None:
    tests = Path(__file__).with_name("interpreted_triton_attention.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    result = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:]
