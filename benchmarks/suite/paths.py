"""Places in the checkout. Only the standard library: the environment of the plots reads this module, too."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
