"""A lock for threads that import packages.

Two threads that import the same packages in a different order would deadlock. Python detects this and lets one of them
see half-initialized modules.
"""

import threading

LOCK = threading.Lock()
