"""Token tables of penalties and biases."""

import numpy as np
import torch

from gridwork_server.sampling.sparse_rows import SparseRows


def table(rows: SparseRows, sequence_id: int) -> dict[int, int]:
    tokens, values = rows.gather(np.array([sequence_id]))
    return dict(zip(tokens[0].tolist(), values[0].tolist(), strict=True))


def test_counts_equal_a_dictionary_over_many_random_steps():
    rng = np.random.default_rng(1)
    rows = SparseRows(40, 500, torch.int32, torch.device("cpu"))
    expected: dict[int, dict[int, int]] = {}
    for _ in range(300):
        for sequence_id in rng.choice(40, 2, replace=False):
            if sequence_id in expected and rng.random() < 0.3:
                rows.clear(sequence_id)
                del expected[sequence_id]
            elif sequence_id not in expected:
                tokens = rng.choice(500, int(rng.integers(1, 300)), replace=False)
                rows.set(sequence_id, tokens, np.zeros(len(tokens), dtype=np.int32))
                expected[sequence_id] = dict.fromkeys(tokens.tolist(), 0)
        ids = np.array([i for i in sorted(expected) if rng.random() < 0.7], dtype=np.int64)
        if len(ids):
            tokens = rng.integers(0, 500, len(ids))
            rows.increment(ids, torch.from_numpy(tokens))
            for sequence_id, token in zip(ids.tolist(), tokens.tolist(), strict=True):
                expected[sequence_id][token] = expected[sequence_id].get(token, 0) + 1
    for sequence_id, counts in expected.items():
        assert table(rows, sequence_id) == counts


def test_padding_repeats_the_first_pair():
    rows = SparseRows(4, 100, torch.float32, torch.device("cpu"))
    rows.set(0, np.array([5]), np.array([1.5], dtype=np.float32))
    rows.set(3, np.array([7, 8, 9]), np.array([1, 2, 3], dtype=np.float32))
    tokens, values = rows.gather(np.array([3, 0]))
    assert tokens.tolist() == [[7, 8, 9], [5, 5, 5]]
    assert values.tolist() == [[1, 2, 3], [1.5, 1.5, 1.5]]


def test_a_full_vocabulary_of_tokens_fits():
    rows = SparseRows(2, 70, torch.int32, torch.device("cpu"))
    rows.set(0, np.arange(69), np.zeros(69, dtype=np.int32))
    for token in [69, 0, 69, 69]:
        rows.increment(np.array([0]), torch.tensor([token]))
    counts = table(rows, 0)
    assert len(counts) == 70
    assert (counts[69], counts[0], counts[1]) == (3, 1, 0)


def test_memory_grows_with_the_distinct_tokens_in_use():
    rows = SparseRows(256, 150_000, torch.int32, torch.device("cpu"))
    for sequence_id in range(256):
        rows.set(sequence_id, np.arange(1000), np.zeros(1000, dtype=np.int32))
    assert rows._tokens.nbytes + rows._values.nbytes < 8 * 256 * 2048
