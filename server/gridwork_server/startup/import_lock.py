"""Threads that load something take turns.

Two that import the same packages at once, in another order, would wait for each other: Python notices, and lets one of
them see modules that are half made.
"""

import threading

LOCK = threading.Lock()
