"""Runs a function every few seconds beside a long operation, to log its progress."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(action: Callable[[], None], interval_s: float) -> Iterator[None]:
    """Calls `action` in a thread every `interval_s` seconds, for the duration of a `with` block."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(interval_s):
            action()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
