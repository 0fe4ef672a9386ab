"""Runs models without any cache: every token recomputes its whole sequence. It is the path of last resort."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from gridwork_server.paths.base import CacheNeeds, ModelPath, wanted_tokens

if TYPE_CHECKING:
    from gridwork_server.paths.caller import Caller
    from gridwork_server.paths.seq2seq import Seq2SeqCaller
    from gridwork_server.paths.sequence_table import SequenceTable, StepBatch


class RecomputePath(ModelPath):
    """Path for any model that gives logits for tokens, one sequence at a time."""

    name = "solo"
    recomputes_alike = True

    def __init__(self, caller: "Caller | Seq2SeqCaller", attention_name: str) -> None:
        self._caller = caller
        self.attention_name = attention_name
        self.needs = CacheNeeds(0)

    def forward(self, batch: "StepBatch", table: "SequenceTable", extra: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """See ModelPath."""
        kept = wanted_tokens(batch, extra)
        rows = []
        for i, sequence in enumerate(batch.sequence_ids):
            of_sequence = kept[batch.row[kept] == i]
            if len(of_sequence) == 0:
                continue
            positions = batch.positions[of_sequence]
            tokens = table.token_ids[sequence, : positions[-1] + 1]
            logits = self._caller.plain(tokens, int(table.num_prompt[sequence]))
            # Some models give only the last token's logits.
            first = int(positions[-1]) + 1 - logits.shape[0]
            for position in positions.tolist():
                missing = torch.full_like(logits[-1], torch.nan)
                rows.append(logits[position - first] if position >= first else missing)
        if not rows:
            return torch.empty(0, 0), kept
        return torch.stack(rows), kept

    def release(self, ids: np.ndarray) -> None:
        """See ModelPath."""

    def reset(self) -> None:
        """See ModelPath."""
