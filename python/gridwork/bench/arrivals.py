"""Times at which requests arrive, for a load that does not wait for answers."""

import random
from collections.abc import Iterator


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests arrive: a Poisson process of `rate` requests a second, without end."""
    chance = random.Random(f"arrivals {seed}")
    at_s = 0.0
    while True:
        at_s += chance.expovariate(rate)
        yield at_s
