"""Random numbers that depend on a key and a counter alone: Philox4x32-10.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3.
The generator has no state: the number for (seed, position) is the same in every batch, row and process.
"""

import numpy as np

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
# The key's two words grow by these each round (golden ratio and sqrt(3) - 1).
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_KEY_STEPS = np.arange(_ROUNDS, dtype=np.uint64)[:, None, None] * _WEYL  # [rounds, 2, 1]
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)


def philox4x32(counters: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Ten rounds of Philox4x32.

    counters: uint64 [4, N], keys: uint64 [2, N], each holding 32-bit words. Returns uint64 [4, N] of 32-bit words.
    """
    round_keys = (keys[None, :, :] + _KEY_STEPS) & _LOW
    # Words 0 and 2 are multiplied, words 1 and 3 are mixed in. Each pair is one [2, N] array.
    multiplied, mixed = counters[0::2], counters[1::2]
    for key in round_keys:
        products = multiplied * _MULTIPLIERS
        multiplied = (products[::-1] >> _WORD) ^ mixed ^ key
        mixed = products[::-1] & _LOW
    words = np.empty((4, multiplied.shape[1]), dtype=np.uint64)
    words[0::2], words[1::2] = multiplied, mixed
    return words


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A number in [0, 1) with 53 random bits for each (seed, position).

    seeds: uint64 [N], positions: int64 [N], not negative. Returns float64 [N].
    """
    seeds = seeds.astype(np.uint64, copy=False)
    positions = positions.astype(np.uint64, copy=False)
    counters = np.zeros((4, len(seeds)), dtype=np.uint64)
    counters[0], counters[1] = positions & _LOW, positions >> _WORD
    words = philox4x32(counters, np.stack((seeds & _LOW, seeds >> _WORD)))
    return (((words[0] << _WORD) | words[1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53
