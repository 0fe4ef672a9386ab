"""A short table of (token, value) pairs for each sequence that needs one, as padded tensors.

Penalties and biases concern few tokens of the vocabulary, so their memory grows with the distinct tokens of the
sequences that use them, not with sequences times vocabulary.
"""

import numpy as np
import torch

from gridwork_kernels.device_copies import to_device

_FIRST_CAPACITY = 64


class SparseRows:
    """Pairs of token id and value for some sequences. A token is at most once in a sequence's table.

    Rows and columns are allocated when needed (doubling). Rows are reused after `clear`.
    """

    def __init__(self, max_sequences: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._row_of = np.full(max_sequences, -1, dtype=np.int64)  # row of each sequence id
        self._free: list[int] = []
        # An upper bound of each row's length. Only the device knows the length itself, so that nothing waits for it.
        self._length_bound = np.zeros(0, dtype=np.int64)
        self._tokens = torch.zeros((0, _FIRST_CAPACITY), dtype=torch.int32, device=device)
        self._values = torch.zeros((0, _FIRST_CAPACITY), dtype=dtype, device=device)
        self._lengths = torch.zeros(0, dtype=torch.int64, device=device)

    def set(self, sequence_id: int, tokens: np.ndarray, values: np.ndarray) -> None:
        """Sets a sequence's table. tokens: distinct ids within the vocabulary, int [n]; values: [n]."""
        if self._row_of[sequence_id] < 0:
            self._row_of[sequence_id] = self._take_row()
        row = int(self._row_of[sequence_id])
        self._reserve_columns(len(tokens))
        if len(tokens):
            self._tokens[row, : len(tokens)] = to_device(tokens.astype(np.int32), self._device)
            self._values[row, : len(tokens)] = to_device(values, self._device).to(self._values.dtype)
        self._lengths[row] = len(tokens)
        self._length_bound[row] = len(tokens)

    def clear(self, sequence_id: int) -> None:
        """Drops a sequence's table, if it has one."""
        row = int(self._row_of[sequence_id])
        if row >= 0:
            self._free.append(row)
            self._row_of[sequence_id] = -1

    def has_entries(self, sequence_ids: np.ndarray) -> np.ndarray:
        """bool [N]: whether the table of each sequence has entries. Every sequence must have a table."""
        return self._length_bound[self._row_of[sequence_ids]] > 0

    def gather(self, sequence_ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables of sequences, none of them empty: tokens int64 [N, W] and values [N, W].

        Shorter tables are padded with copies of their first pair. A scatter of results that depend on the pair alone is
        then right and deterministic.
        """
        rows, width = self._locate(sequence_ids)
        tokens = self._tokens[rows, :width].to(torch.int64)
        values = self._values[rows, :width]
        padding = torch.arange(width, device=self._device) >= self._lengths[rows, None]
        return torch.where(padding, tokens[:, :1], tokens), torch.where(padding, values[:, :1], values)

    def increment(self, sequence_ids: np.ndarray, tokens: torch.Tensor) -> None:
        """Adds 1 to the value of a token of each sequence, int64 [N] on the device. A new token is entered with 1."""
        bounds = self._length_bound[self._row_of[sequence_ids]]
        self._reserve_columns(min(int(bounds.max()) + 1, self._vocab_size))
        rows, width = self._locate(sequence_ids)
        lengths = self._lengths[rows]
        if width:
            known = torch.arange(width, device=self._device) < lengths[:, None]
            hits = (self._tokens[rows, :width] == tokens[:, None]) & known
            found, column = hits.any(1), hits.to(torch.uint8).argmax(1)
        else:
            found, column = torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows)
        column = torch.where(found, column, lengths)
        values = torch.where(found, self._values[rows, column], torch.zeros_like(self._values[rows, column]))
        self._tokens[rows, column] = tokens.to(torch.int32)
        self._values[rows, column] = values + 1
        self._lengths[rows] = lengths + ~found
        self._length_bound[self._row_of[sequence_ids]] = np.minimum(bounds + 1, self._vocab_size)

    def _locate(self, sequence_ids: np.ndarray) -> tuple[torch.Tensor, int]:
        rows = self._row_of[sequence_ids]
        return to_device(rows, self._device), int(self._length_bound[rows].max())

    def _take_row(self) -> int:
        if not self._free:
            old, new = len(self._lengths), min(max(8, 2 * len(self._lengths)), len(self._row_of))
            self._tokens = _grown(self._tokens, (new, self._tokens.shape[1]))
            self._values = _grown(self._values, (new, self._values.shape[1]))
            self._lengths = _grown(self._lengths, (new,))
            self._length_bound = np.concatenate((self._length_bound, np.zeros(new - old, dtype=np.int64)))
            self._free = list(range(old, new))
        return self._free.pop()

    def _reserve_columns(self, needed: int) -> None:
        capacity = self._tokens.shape[1]
        if needed > capacity:
            capacity = min(max(needed, 2 * capacity), max(needed, self._vocab_size))
            self._tokens = _grown(self._tokens, (self._tokens.shape[0], capacity))
            self._values = _grown(self._values, (self._values.shape[0], capacity))


def _grown(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Copies a tensor into a larger one that is zero elsewhere."""
    grown = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    grown[tuple(slice(size) for size in tensor.shape)] = tensor
    return grown
