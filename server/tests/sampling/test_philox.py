"""The random numbers: known answers, uniformity, independence of neighbours."""

import numpy as np
import pytest

from gridwork_server.sampling.philox import philox4x32, uniforms

# From the authors' Random123 library, file kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    (
        [0x00000000] * 4,
        [0x00000000] * 2,
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
    ),
    (
        [0xFFFFFFFF] * 4,
        [0xFFFFFFFF] * 2,
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, result):
    words = philox4x32(np.array(counter, dtype=np.uint64)[:, None], np.array(key, dtype=np.uint64)[:, None])
    assert words[:, 0].tolist() == result


def test_known_answers_hold_side_by_side():
    counters = np.array([counter for counter, _, _ in KNOWN_ANSWERS], dtype=np.uint64).T.copy()
    keys = np.array([key for _, key, _ in KNOWN_ANSWERS], dtype=np.uint64).T.copy()
    assert philox4x32(counters, keys).T.tolist() == [result for _, _, result in KNOWN_ANSWERS]


def chi_square(numbers: np.ndarray, bins: int) -> float:
    """The statistic less its mean, in standard deviations."""
    counts = np.histogram(numbers, bins=bins, range=(0, 1))[0]
    expected = len(numbers) / bins
    return float((((counts - expected) ** 2 / expected).sum() - (bins - 1)) / np.sqrt(2 * (bins - 1)))


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 + 5, 2**64 - 1])
def test_numbers_of_one_seed_are_uniform_over_positions(seed):
    numbers = uniforms(np.full(200_000, seed, dtype=np.uint64), np.arange(200_000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(chi_square(numbers, 256)) < 4
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01


@pytest.mark.parametrize("position", [0, 1, 4096, 2**33])
def test_numbers_of_one_position_are_uniform_over_seeds(position):
    numbers = uniforms(np.arange(200_000, dtype=np.uint64), np.full(200_000, position))
    assert abs(chi_square(numbers, 256)) < 4


def test_a_number_depends_on_its_own_seed_and_position_alone():
    rng = np.random.default_rng(7)
    seeds = rng.integers(0, 2**64, 64, dtype=np.uint64)
    positions = rng.integers(0, 2**20, 64)
    together = uniforms(seeds, positions)
    alone = [uniforms(seeds[i : i + 1], positions[i : i + 1])[0] for i in range(64)]
    assert together.tolist() == alone
    order = rng.permutation(64)
    assert uniforms(seeds[order], positions[order]).tolist() == together[order].tolist()


def test_all_64_bits_of_the_seed_matter():
    seeds = np.array([5 ^ (1 << bit) for bit in range(64)] + [5], dtype=np.uint64)
    assert len(set(uniforms(seeds, np.full(65, 3)).tolist())) == 65
