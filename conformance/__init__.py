"""Every model type of the installed Transformers, tiny and random, served and compared with Transformers itself.

Unlike integration-tests/, this package runs the server's own modules, and the driver and planted errors of its tests.
"""

import sys
from pathlib import Path

SERVER = Path(__file__).resolve().parents[1] / "server"

# For `tests.driver` and `tests.planted_errors`.
sys.path.append(str(SERVER))
