"""Runs models that take and return a cache of their own, as continuous batches over any kind of cache.

A sequence's prompt is computed alone, in one piece. Sequences that decode share a cohort: one cache whose tensors are
stacked along the batch dimension, with shorter sequences padded on the left. A cohort stays unchanged while its members
do; when one joins or leaves, its tensors are stacked again.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loguru import logger

from gridwork_server.errors import PathError
from gridwork_server.paths.base import CacheNeeds, ModelPath, wanted_tokens
from gridwork_server.paths.cache_tree import CacheSpec, Member

if TYPE_CHECKING:
    from gridwork_server.paths.caller import Caller
    from gridwork_server.paths.seq2seq import Seq2SeqCaller
    from gridwork_server.paths.sequence_table import SequenceTable, StepBatch


@dataclass
class Cohort:
    """B sequences that decode together."""

    ids: list[int]
    lengths: np.ndarray
    """Number of each sequence's tokens in the cache, int64 [B]."""
    cache: Any
    sizes: list[list[int]] = field(default_factory=list)
    """Sizes of the cache's tensors along their length without padding, by sequence."""


class BatchedPath(ModelPath):
    """Path for a model that takes a cache and returns it."""

    def __init__(self, caller: "Caller | Seq2SeqCaller", attention_name: str, cohorts: str, token: int = 0) -> None:
        """cohorts: which sequences decode together: `padded`, those of any lengths; `equal`, those of one length;
        `single`, none. token: an id to try the model with. Raises PathError when the model returns no cache, or one
        that sequences cannot share in that way."""
        self.name = "solo" if cohorts == "single" else "batched"
        self.attention_name = attention_name
        self._caller = caller
        self._call_lengths = caller.lengths
        self._mode = cohorts
        self._spec = CacheSpec([], [])
        self._cohorts: dict[int, Cohort] = {}
        """Cohort of each sequence, by the sequence's id."""
        with torch.inference_mode():
            self.needs = self._probe(token)

    def _probe(self, token: int) -> CacheNeeds:
        probe = self._caller.probe(token, share=self._mode != "single")
        self._spec = probe.spec or CacheSpec([], [])
        # Stacking copies: the new tensors exist beside the ones that they are made from.
        return CacheNeeds(
            3 * max(0, probe.longer.num_bytes - probe.alone.num_bytes) // probe.more_tokens, 2 * probe.alone.num_bytes
        )

    def release(self, ids: np.ndarray) -> None:
        """See ModelPath."""
        for id in ids.tolist():
            self._cohorts.pop(id, None)

    def reset(self) -> None:
        """See ModelPath."""
        self._cohorts.clear()

    def forward(self, batch: "StepBatch", table: "SequenceTable", extra: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """See ModelPath. A chunk that ends before the last known token computes nothing; the last chunk computes
        all."""
        kept = wanted_tokens(batch, extra)
        rows: dict[int, torch.Tensor] = {}
        decodes = []
        for i, id in enumerate(batch.sequence_ids.tolist()):
            wanted = kept[batch.row[kept] == i]
            if len(wanted) == 0:
                continue
            position = int(batch.positions[batch.last[i]])
            cohort = self._cohorts.get(id)
            offset = self._offset([id], table)[0]
            if (
                cohort is not None
                and batch.num_tokens[i] == 1
                and cohort.lengths[cohort.ids.index(id)] + offset == position
            ):
                decodes.append((id, int(wanted[0])))
                continue
            self._cohorts.pop(id, None)
            keep_all = len(wanted) > 1 or not batch.samples[i]
            logits, cache = self._first(id, position + 1, table, keep_all)
            if batch.samples[i]:
                self._cohorts[id] = Cohort([id], np.array([position + 1 - offset]), cache, self._sizes(cache))
            last = logits.shape[0] - 1
            for token in wanted.tolist():
                row = last - (position - int(batch.positions[token]))
                # Tokens of an encoder's prompt have no logits.
                rows[token] = logits[row] if row >= 0 else torch.full_like(logits[last], torch.nan)
        try:
            cohorts = self._gather([id for id, _ in decodes])
        except (PathError, ValueError, RuntimeError) as error:
            self._stop_sharing(error)
            cohorts = self._gather([id for id, _ in decodes])
        for cohort in cohorts:
            lengths = cohort.lengths + self._offset(cohort.ids, table)
            tokens = table.token_ids[cohort.ids, lengths].astype(np.int64)
            if self._mode == "single" and not cohort.sizes:
                self._recompute_cache(cohort, table)
            logits = self._decode(cohort, tokens)
            for id, token in decodes:
                if id in cohort.ids:
                    rows[token] = logits[cohort.ids.index(id)]
        if not rows:
            return torch.empty(0, 0), kept
        return torch.stack([rows[token] for token in kept.tolist()]), kept

    def _offset(self, ids: list[int], table: "SequenceTable") -> np.ndarray:
        return self._caller.offset(table.num_prompt[ids])

    def _first(self, id: int, length: int, table: "SequenceTable", keep_all: bool) -> tuple[torch.Tensor, Any]:
        num_prompt = int(table.num_prompt[id])
        tokens = table.token_ids[id, :length]
        if self._call_lengths is None:
            return self._caller.first(tokens, num_prompt, keep_all)
        first = self._caller.first_tokens(int(table.num_first[id]))
        offset = int(self._offset([id], table)[0])
        if self._call_lengths.by_call:
            if length < first + offset:  # a chunk of a prompt that `generate()` computes in one call
                logits, cache = self._caller.first(table.token_ids[id, : first + offset], num_prompt, True)
                return logits[: length - offset], cache
            return self._first_token_by_token(tokens, num_prompt, keep_all, first + offset, offset)
        lengths = np.maximum(np.arange(1, length + 1 - offset), first)[None]
        return self._caller.first(tokens, num_prompt, keep_all, lambda: self._lengths_of(lengths))

    def _first_token_by_token(
        self, tokens: np.ndarray, num_prompt: int, keep_all: bool, first: int, offset: int
    ) -> tuple[torch.Tensor, Any]:
        """See Caller.first. Tokens after the first call's are computed one by one, as they were the first time."""
        first = min(first, len(tokens))
        logits, cache = self._caller.first(tokens[:first], num_prompt, keep_all)
        rows = [logits]
        for length in range(first, len(tokens)):
            next_logits, cache = self._caller.next(
                tokens[length : length + 1].astype(np.int64), cache, np.array([length - offset])
            )
            rows.append(next_logits)
        return torch.cat(rows if keep_all else rows[-1:]), cache

    def _decode(self, cohort: Cohort, tokens: np.ndarray) -> torch.Tensor:
        """Computes one token of every member. tokens: int64 [B]. Returns logits `[B, vocab_size]`."""
        with self._lengths_of(cohort.lengths[:, None] + 1):
            logits, cohort.cache = self._caller.next(tokens, cohort.cache, cohort.lengths)
        cohort.lengths = cohort.lengths + 1
        if self._mode != "single":
            try:
                cohort.sizes = self._spec.sizes_after_token(cohort.cache, cohort.sizes)
            except ValueError as error:
                self._stop_sharing(error)
        return logits

    def _lengths_of(self, lengths: np.ndarray) -> AbstractContextManager[None]:
        return nullcontext() if self._call_lengths is None else self._call_lengths.of(lengths)

    def _stop_sharing(self, error: Exception) -> None:
        """Makes every sequence decode alone from now on, because the cache no longer has the layout that was found.
        Sequences that shared a cache are recomputed from their tokens."""
        logger.warning(
            f"the model's caches can no longer be combined ({type(error).__name__}: {error}): from now on every "
            "sequence decodes alone"
        )
        self._mode = "single"
        shared = [cohort for cohort in self._cohorts.values() if len(cohort.ids) > 1]
        for cohort in shared:
            for index, id in enumerate(cohort.ids):
                if self._cohorts.get(id) is cohort:
                    self._cohorts[id] = Cohort([id], cohort.lengths[index : index + 1], None)

    def _recompute_cache(self, cohort: Cohort, table: "SequenceTable") -> None:
        """Recomputes the cache of a sequence that decodes alone."""
        (id,) = cohort.ids
        if cohort.cache is None:
            length = int(cohort.lengths[0] + self._offset([id], table)[0])
            cohort.cache = self._first(id, length, table, keep_all=False)[1]
        cohort.sizes = [[]]

    def _gather(self, ids: list[int]) -> list[Cohort]:
        """Cohorts that together hold exactly these sequences; forms new ones where needed."""
        if not ids:
            return []
        lengths = {id: self._length(id) for id in ids}
        groups: dict[tuple[int, int], list[int]] = {}
        for id in ids:
            key = {"padded": 0, "equal": lengths[id], "single": id}[self._mode]
            groups.setdefault((key, self._class(lengths[id] + 1)), []).append(id)
        cohorts = []
        for group in groups.values():
            cohort = self._cohorts[group[0]]
            if set(cohort.ids) != set(group):
                cohort = self._form(group, lengths)
            cohorts.append(cohort)
        return cohorts

    def _class(self, length: int) -> int:
        """Class of a length: one call can compute lengths of one class only."""
        if self._call_lengths is None or not self._call_lengths.by_call:
            return 0
        return int(self._call_lengths.rule.classes(np.array([length]))[0])

    def _form(self, ids: list[int], lengths: dict[int, int]) -> Cohort:
        """Forms a cohort from members of others. The remaining members of those cohorts stay together."""
        members = [self._member(id) for id in ids]
        sources = list({id(cohort): cohort for cohort in (self._cohorts[i] for i in ids)}.values())
        cohort = self._stack(ids, members, lengths)
        for source in sources:
            stay = [i for i in source.ids if i not in lengths and self._cohorts.get(i) is source]
            if stay:
                rest = self._stack(stay, [self._member(i) for i in stay], {i: self._length(i) for i in stay})
                self._cohorts.update(dict.fromkeys(stay, rest))
        self._cohorts.update(dict.fromkeys(ids, cohort))
        return cohort

    def _stack(self, ids: list[int], members: list[Member], lengths: dict[int, int]) -> Cohort:
        cache, sizes = self._spec.stack(members, max(lengths[id] for id in ids))
        return Cohort(list(ids), np.array([lengths[id] for id in ids]), cache, sizes)

    def _member(self, id: int) -> Member:
        source = self._cohorts[id]
        index = source.ids.index(id)
        return self._spec.member(source.cache, index, source.sizes[index])

    def _sizes(self, cache: Any) -> list[list[int]]:
        """Sizes of the tensors of one sequence's cache along their length."""
        if self._mode != "single":
            try:
                return [self._spec.unpadded_sizes(cache)]
            except ValueError as error:
                self._stop_sharing(error)
        return [[]]

    def _length(self, id: int) -> int:
        cohort = self._cohorts[id]
        return int(cohort.lengths[cohort.ids.index(id)])
