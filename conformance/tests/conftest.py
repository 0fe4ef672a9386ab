"""Puts integration-tests/ on the path, whose `support` makes the models with Python code of their own."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "integration-tests"))
