"""The memory of a server: the proportional set size (PSS) of all its processes together.

PSS counts a page once when several of them share it, and counts pages of mapped files while they are in memory.
"""

import threading
from pathlib import Path

from suite.servers import family

INTERVAL_S = 1.0


def pss_bytes(pid: int) -> int:
    """PSS of the process and all processes that belong to it, now."""
    total = 0
    for process in family(pid):
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:  # ended meanwhile
            continue
        total += parse_pss(text)
    return total


def parse_pss(smaps_rollup: str) -> int:
    """The PSS in bytes, from the text of /proc/PID/smaps_rollup."""
    for line in smaps_rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0


class Peak:
    """The highest PSS inside the `with` block, read once a second and at the end; 0 unless `watch` is set."""

    def __init__(self, pid: int, watch: bool) -> None:
        self.bytes = 0
        self._watched = watch
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        if self._watched:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._watched:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, pss_bytes(self._pid))
            if self._stop.wait(INTERVAL_S):
                self.bytes = max(self.bytes, pss_bytes(self._pid))
                return
