"""Puts on the path what `gpu_check.setup` puts there for parts."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("gpu", "benchmarks", "integration-tests", "kernels/tests", "server", ".")]
