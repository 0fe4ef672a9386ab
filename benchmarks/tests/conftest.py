"""Puts benchmarks/ on the path, as `make bench` does for `suite` and `tools`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
