"""State of every sequence between steps, as arrays indexed by the router's sequence ids."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_kernels.device_copies import to_device
from gridwork_kernels.paged_attention import PagedLayout

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb


@dataclass(frozen=True)
class DeviceTokens:
    """Input tokens of a step that the step before has sampled, and that the host has not read yet."""

    rows: np.ndarray
    """int64: index of each among the step's tokens."""
    tokens: torch.Tensor
    """int64, on the device: all tokens that the step before has sampled."""
    source: np.ndarray
    """int64: index into `tokens` for each of the rows."""

    def put_into(self, input_ids: torch.Tensor) -> None:
        """Writes them over a step's input tokens. input_ids: int64, on the same device."""
        rows, source = to_device(np.stack((self.rows, self.source)), input_ids.device)
        input_ids.index_copy_(0, rows, self.tokens.index_select(0, source))


@dataclass
class StepBatch:
    """Tokens of one step, concatenated. B sequences, T tokens."""

    sequence_ids: np.ndarray
    """int64 [B]"""
    num_tokens: np.ndarray
    """int64 [B], drafts included"""
    num_drafts: np.ndarray
    """int64 [B]: number of drafts, which are a sequence's last tokens."""
    has_drafts: bool
    """True if any token is a draft."""
    input_ids: np.ndarray
    """int64 [T]"""
    positions: np.ndarray
    """int64 [T]"""
    row: np.ndarray
    """int64 [T]: index into sequence_ids."""
    slots: np.ndarray
    """int64 [T]: slot of each token in the cache."""
    last: np.ndarray
    """int64 [B]: index of each sequence's last token among the T."""
    samples: np.ndarray
    """bool [B]: whether the next token of the sequence is sampled now."""
    sampled: np.ndarray
    """int64, ascending: tokens of the batch after which one is sampled. Of a sequence that samples, these are the last
    known token and its drafts."""
    device_tokens: DeviceTokens | None = None
    """Input tokens that are on the device alone; `input_ids` holds any value in their place."""


class SequenceTable:
    """All sequences of a shard. No method loops over sequences that merely decode."""

    def __init__(self, max_sequences: int, max_total_tokens: int, block_size: int, null_block: int) -> None:
        """null_block: id of the block after the router's last one. Its slots stay zero."""
        self.block_size = block_size
        self.null_block = null_block
        # Room for two tokens more: the token that is sampled last, and the surplus one of a step in flight.
        self.max_blocks = -(-(max_total_tokens + 2) // block_size)
        self.token_ids = np.zeros((max_sequences, max_total_tokens + 2), dtype=np.int32)
        self.block_tables = np.full((max_sequences, self.max_blocks), null_block, dtype=np.int32)
        self.num_blocks = np.zeros(max_sequences, dtype=np.int64)
        self.num_known = np.zeros(max_sequences, dtype=np.int64)
        self.num_computed = np.zeros(max_sequences, dtype=np.int64)
        self.num_prompt = np.zeros(max_sequences, dtype=np.int64)
        self.num_first = np.zeros(max_sequences, dtype=np.int64)
        """Number of tokens that `generate()` computes in its first call; each later token has a call of its own."""
        self.wants_prompt_logprobs = np.zeros(max_sequences, dtype=bool)
        self.top_n_prompt_logprobs = np.zeros(max_sequences, dtype=np.int64)
        self.failed = np.zeros(max_sequences, dtype=bool)

    def release(self, ids: np.ndarray) -> None:
        """Forgets sequences."""
        self.num_blocks[ids] = 0
        self.wants_prompt_logprobs[ids] = False
        self.failed[ids] = False

    def expect_tokens(self, ids: np.ndarray) -> None:
        """Makes room for one more token of each sequence, int64 [B]. `set_tokens` tells it later."""
        self.num_known[ids] += 1

    def set_tokens(self, ids: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> None:
        """Sets tokens that `expect_tokens` made room for. int64 [B] each."""
        self.token_ids[ids, positions] = tokens

    def admit(self, new: "pb.NewSequence") -> None:
        """Takes a sequence in, with its tokens."""
        tokens = np.fromiter(new.token_ids, dtype=np.int32, count=len(new.token_ids))
        self.token_ids[new.id, : len(tokens)] = tokens
        self.num_known[new.id] = len(tokens)
        self.num_prompt[new.id] = new.num_prompt_tokens
        self.num_first[new.id] = new.num_first_tokens or new.num_prompt_tokens
        self.num_computed[new.id] = new.num_computed_tokens
        self.num_blocks[new.id] = 0
        self.wants_prompt_logprobs[new.id] = new.prompt_logprobs
        self.top_n_prompt_logprobs[new.id] = new.top_n_prompt_logprobs
        self.failed[new.id] = False

    def append_blocks(self, ids: np.ndarray, num_new: np.ndarray, blocks: np.ndarray) -> None:
        """Appends blocks to block tables. ids: int64 [B]; num_new: int64 [B], number of blocks for each sequence;
        blocks: int64, concatenated."""
        if len(blocks) == 0:
            return
        rows = np.repeat(ids, num_new)
        self.block_tables[rows, self.num_blocks[rows] + _within(num_new)] = blocks
        self.num_blocks[ids] += num_new

    def set_drafts(self, ids: np.ndarray, num_drafts: np.ndarray, drafts: np.ndarray) -> None:
        """Writes drafts after the known tokens. ids: int64 [B]; num_drafts: int64 [B], number of drafts of each
        sequence; drafts: int64, concatenated."""
        if len(drafts) == 0:
            return
        rows = np.repeat(ids, num_drafts)
        self.token_ids[rows, self.num_known[rows] + _within(num_drafts)] = drafts

    def batch(self, ids: np.ndarray, num_tokens: np.ndarray, num_drafts: np.ndarray | None = None) -> StepBatch:
        """Makes a step's batch. ids: int64 [B], each once; num_tokens: int64 [B], drafts included; num_drafts: int64
        [B]; None: no drafts."""
        has_drafts = num_drafts is not None and bool(num_drafts.any())
        if num_drafts is None:
            num_drafts = np.zeros_like(ids)
        starts = self.num_computed[ids]
        ends = num_tokens.cumsum()
        total = int(ends[-1]) if len(ends) else 0
        if total == len(ids):
            row = last = np.arange(total)
            of_token, positions = ids, starts
        else:
            row, last = np.repeat(np.arange(len(ids)), num_tokens), ends - 1
            of_token = ids[row]
            positions = np.arange(total) + np.repeat(starts - (ends - num_tokens), num_tokens)
        samples = starts + num_tokens - num_drafts == self.num_known[ids]
        sampled = last[samples]
        if has_drafts:
            drafts = num_drafts[samples]
            sampled = np.repeat(sampled - drafts, drafts + 1) + _within(drafts + 1)
        block, within = np.divmod(positions, self.block_size)
        blocks = self.block_tables[of_token, block].astype(np.int64)
        return StepBatch(
            sequence_ids=ids,
            num_tokens=num_tokens,
            num_drafts=num_drafts,
            has_drafts=has_drafts,
            input_ids=self.token_ids[of_token, positions].astype(np.int64),
            positions=positions,
            row=row,
            slots=blocks * self.block_size + within,
            last=last,
            samples=samples,
            sampled=sampled,
        )

    def layout(self, batch: StepBatch, device: torch.device) -> PagedLayout:
        """Layout of the batch's tokens, and of their sequences' keys, in the cache."""
        length = batch.positions + 1
        end = length[batch.last]
        width = -(-int(end.max(initial=1)) // self.block_size)
        tables = np.ascontiguousarray(self.block_tables[batch.sequence_ids, :width])
        return PagedLayout(
            block_tables=to_device(tables, device),
            sequence=to_device(batch.row.astype(np.int32), device),
            length=to_device(length.astype(np.int32), device),
            slots=to_device(batch.slots, device),
            block_size=self.block_size,
            num_tokens=batch.num_tokens.tolist(),
            end=end.tolist(),
            null_slot=self.null_block * self.block_size,
        )

    def call_lengths(self, batch: StepBatch) -> np.ndarray:
        """int64 [T]: length of the call in which `generate()` computes each token; see `CallLengths`."""
        return np.maximum(self.num_first[batch.sequence_ids][batch.row], batch.positions + 1)

    def computed(self, batch: StepBatch) -> None:
        """Notes that the batch's keys and values are in the cache. Drafts count once they are taken."""
        self.num_computed[batch.sequence_ids] += batch.num_tokens - batch.num_drafts

    def append_tokens(self, ids: np.ndarray, tokens: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Appends sampled tokens. ids: int64 [B], each once; tokens: int64, concatenated; counts: int64 [B], number of
        tokens of each sequence; None: one each."""
        if counts is None:
            places = self.num_known[ids]
            self.token_ids[ids, places] = tokens
            self.num_known[ids] = places + 1
            self.num_computed[ids] = places
            return
        rows = np.repeat(ids, counts)
        self.token_ids[rows, self.num_known[rows] + _within(counts)] = tokens
        self.num_known[ids] += counts
        # Tokens before the last were drafts, which are computed. A sequence that gets none computes its last one again.
        self.num_computed[ids] = self.num_known[ids] - 1


def _within(counts: np.ndarray) -> np.ndarray:
    """0, 1, … up to each count, concatenated. int64."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
