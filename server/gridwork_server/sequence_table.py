"""What the shard keeps of every sequence between steps, as arrays indexed by the router's sequence ids."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_kernels.paged_attention import PagedLayout

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb


@dataclass
class StepBatch:
    """One step's tokens, flat. B sequences, T tokens."""

    sequence_ids: np.ndarray
    """int64 [B]"""
    num_tokens: np.ndarray
    """int64 [B]"""
    input_ids: np.ndarray
    """int64 [T]"""
    positions: np.ndarray
    """int64 [T]"""
    row: np.ndarray
    """int64 [T]: index into sequence_ids."""
    slots: np.ndarray
    """int64 [T]: place of each token in the cache."""
    last: np.ndarray
    """int64 [B]: index of each sequence's last token among the T."""
    samples: np.ndarray
    """bool [B]: whether the next token of the sequence is sampled now."""


class SequenceTable:
    """All sequences of a shard. Nothing here loops over sequences that merely decode."""

    def __init__(self, max_sequences: int, max_total_tokens: int, block_size: int, null_block: int) -> None:
        """null_block: id of the block behind the router's last one, whose slots stay zero."""
        self.block_size = block_size
        self.null_block = null_block
        # Two more than the longest sequence: the token that is sampled last, and the surplus one of a step in flight.
        self.max_blocks = -(-(max_total_tokens + 2) // block_size)
        self.token_ids = np.zeros((max_sequences, max_total_tokens + 2), dtype=np.int32)
        self.block_tables = np.full((max_sequences, self.max_blocks), null_block, dtype=np.int32)
        self.num_blocks = np.zeros(max_sequences, dtype=np.int64)
        self.num_known = np.zeros(max_sequences, dtype=np.int64)
        self.num_computed = np.zeros(max_sequences, dtype=np.int64)
        self.num_prompt = np.zeros(max_sequences, dtype=np.int64)
        self.wants_prompt_logprobs = np.zeros(max_sequences, dtype=bool)
        self.failed = np.zeros(max_sequences, dtype=bool)

    def release(self, ids: np.ndarray) -> None:
        """Forgets sequences."""
        self.num_blocks[ids] = 0
        self.wants_prompt_logprobs[ids] = False
        self.failed[ids] = False

    def admit(self, new: "pb.NewSequence") -> None:
        """Takes over a sequence's tokens."""
        tokens = np.fromiter(new.token_ids, dtype=np.int32, count=len(new.token_ids))
        self.token_ids[new.id, : len(tokens)] = tokens
        self.num_known[new.id] = len(tokens)
        self.num_prompt[new.id] = new.num_prompt_tokens
        self.num_computed[new.id] = new.num_computed_tokens
        self.num_blocks[new.id] = 0
        self.wants_prompt_logprobs[new.id] = new.prompt_logprobs
        self.failed[new.id] = False

    def append_blocks(self, ids: np.ndarray, num_new: np.ndarray, blocks: np.ndarray) -> None:
        """ids: int64 [B]; num_new: int64 [B], how many of `blocks` (int64, concatenated) each gets."""
        if len(blocks) == 0:
            return
        rows = np.repeat(ids, num_new)
        within = np.arange(len(blocks)) - np.repeat(np.cumsum(num_new) - num_new, num_new)
        self.block_tables[rows, self.num_blocks[rows] + within] = blocks
        self.num_blocks[ids] += num_new

    def batch(self, ids: np.ndarray, num_tokens: np.ndarray) -> StepBatch:
        """The tokens that the step computes for these sequences, each at most once."""
        starts = self.num_computed[ids]
        ends = np.cumsum(num_tokens)
        total = int(ends[-1]) if len(ends) else 0
        if total == len(ids):
            row = np.arange(total)
            positions = starts.copy()
        else:
            row = np.repeat(np.arange(len(ids)), num_tokens)
            positions = np.arange(total) + np.repeat(starts - (ends - num_tokens), num_tokens)
        of_token = ids[row]
        blocks = self.block_tables[of_token, positions // self.block_size].astype(np.int64)
        return StepBatch(
            sequence_ids=ids,
            num_tokens=num_tokens,
            input_ids=self.token_ids[of_token, positions].astype(np.int64),
            positions=positions,
            row=row,
            slots=blocks * self.block_size + positions % self.block_size,
            last=ends - 1,
            samples=starts + num_tokens == self.num_known[ids],
        )

    def layout(self, batch: StepBatch, device: torch.device) -> PagedLayout:
        """Where the batch's tokens and their sequences' keys lie in the cache."""
        end = batch.positions[batch.last] + 1
        width = -(-int(end.max(initial=1)) // self.block_size)
        tables = np.ascontiguousarray(self.block_tables[batch.sequence_ids, :width])
        return PagedLayout(
            block_tables=torch.from_numpy(tables).to(device),
            sequence=torch.from_numpy(batch.row.astype(np.int32)).to(device),
            length=torch.from_numpy((batch.positions + 1).astype(np.int32)).to(device),
            slots=torch.from_numpy(batch.slots).to(device),
            block_size=self.block_size,
            num_tokens=batch.num_tokens.tolist(),
            end=end.tolist(),
            null_slot=self.null_block * self.block_size,
        )

    def computed(self, batch: StepBatch) -> None:
        """The batch's keys and values stand in the cache."""
        self.num_computed[batch.sequence_ids] += batch.num_tokens

    def append_tokens(self, ids: np.ndarray, tokens: np.ndarray) -> None:
        """Tokens that were sampled: int64 [B] each."""
        self.token_ids[ids, self.num_known[ids]] = tokens
        self.num_known[ids] += 1
