"""Memory bandwidth of this machine: the fastest of several reads of 2 GiB with all cores, in GB/s (10^9 bytes).

Decoding at batch 1 reads every weight once per token: weight bytes over this figure are the lower bound of its time.
Two ways of reading are tried, since either may miss the limit on some machine: a sum, and a product of a matrix and a
vector.
"""

import argparse
import time
from collections.abc import Callable

READ_BYTES = 2 << 30
REPEATS = 8


def measure() -> float:
    """The bandwidth in GB/s."""
    import torch

    columns = 4096
    matrix = torch.ones(READ_BYTES // 4 // columns, columns)
    vector = torch.ones(columns)
    ways: tuple[Callable[[], torch.Tensor], ...] = (matrix.sum, lambda: torch.mv(matrix, vector))
    best_s = float("inf")
    for _ in range(REPEATS):
        for read in ways:
            started = time.perf_counter()
            read()
            best_s = min(best_s, time.perf_counter() - started)
    return READ_BYTES / best_s / 1e9


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(f"{measure():.2f}")
