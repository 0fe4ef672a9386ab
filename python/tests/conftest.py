"""Puts on the path what `make wheel` puts there."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("python", "gpu", "kernels")]
