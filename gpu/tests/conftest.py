"""Puts gpu/ on the path, as `make gpu-check` does, and benchmarks/ and integration-tests/, which parts import."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("gpu", "benchmarks", "integration-tests")]
