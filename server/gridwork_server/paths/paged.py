"""The fast path: one flat batch of tokens, with keys and values in blocks that the router hands out."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loguru import logger

from gridwork_kernels import attention_choice
from gridwork_kernels.device_copies import to_device
from gridwork_kernels.paged_attention import SPARE_BLOCKS, PagedLayout
from gridwork_server.attention import ARGUMENT, LayerKey, PagedStep, Probe, running
from gridwork_server.errors import ModelError, PathError
from gridwork_server.graph.record import RecordError
from gridwork_server.graph.recorded_model import RecordedModel
from gridwork_server.lengths.call_lengths import CallLengths
from gridwork_server.paths import prefault
from gridwork_server.paths.base import CacheNeeds, ModelPath, wanted_tokens
from gridwork_server.paths.decode_graphs import BlockSpace, DecodeGraphs, DecodeInputs, StepPlaces
from gridwork_server.paths.layer_kinds import (
    check_cache_kinds,
    check_windows,
    chunks_of,
    demands_of,
    has_states,
    keeps_only_states,
)
from gridwork_server.paths.sequence_table import DeviceTokens
from gridwork_server.paths.window_blocks import WindowBlocks, most_in_use
from gridwork_server.recurrent.pool import StatePool, state_layout
from gridwork_server.text import one_line

if TYPE_CHECKING:
    from torch import nn

    from gridwork_kernels.states import StateLayout
    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.paths.sequence_table import SequenceTable, StepBatch
    from gridwork_server.recurrent.operations import StateKey
    from gridwork_server.recurrent.pool import StateGeometry


class PagedPath(ModelPath):
    """Runs a model whose layers call our attention function, and functions with recurrent states that ours replace."""

    name = "paged"
    takes_device_tokens = True
    takes_positions = True
    allocates_cache = True
    has_paged_attention = True

    def __init__(
        self,
        model: "nn.Module",
        dtype: torch.dtype,
        device: torch.device,
        attention: str,
        record: bool = False,
        block_size: int = 16,
        decode_sizes: Sequence[int] = (),
        lengths: CallLengths | None = None,
    ) -> None:
        """Runs one token through the model, to see what every layer writes to the cache.

        attention: name of an implementation, or `auto`; record: run recorded operations instead of the model's code,
        where possible; block_size: that of the cache; decode_sizes: numbers of sequences for which decode steps are
        replayed; lengths: the model's modules that depend on how many tokens are computed together, if it has any.
        Raises PathError when the model cannot run on this path, ModelError when the named attention cannot be used.
        """
        self._model, self._dtype, self._device = model, dtype, device
        self._keeps_logits = keeps_logits(model)
        self._lengths = lengths
        self._recorded: RecordedModel | None = None
        self.notes: list[str] = []
        check_cache_kinds(model)
        self._has_states = has_states(model)
        if self._has_states:
            from gridwork_server.recurrent.functions import replace_functions

            replace_functions(model)
        if lengths is not None and lengths.by_call:
            raise PathError(f"rotary frequencies of {type(model).__name__} are those of a whole call")
        probe = Probe()
        with torch.inference_mode():
            token = np.zeros(1, dtype=np.int64)
            self._call(token, token, np.zeros(1, dtype=np.int64), probe)
        if not probe.layers and not keeps_only_states(model):
            raise PathError(f"{type(model).__name__} never calls the attention function of its config")
        self.layers = probe.layers
        """Geometry of each layer, on this rank."""
        self._states: dict[StateKey, StateGeometry] = probe.states
        self._pool: StatePool | None = None
        # A state is overwritten: it can neither be shared nor taken back after a wrong draft.
        self.shares_blocks = self.takes_drafts = not self._states
        self._chunks = chunks_of(model)
        self._sharing = {key for key, layer in self.layers.items() if layer.source is not None}
        check_windows(model, self.layers, self._chunks)
        setting = attention_choice.Setting(device, dtype, block_size)
        demands = [demands_of(layer, self._chunks.get(key[0], 0)) for key, layer in self.layers.items()]
        try:
            choice = attention_choice.choose(attention, setting, demands)
        except ValueError as error:
            raise ModelError(str(error)) from None
        self.attention_name = choice.description if demands else ("cpu" if device.type == "cpu" else "none")
        self._attention = {
            key: attention_choice.IMPLEMENTATIONS[name] for key, name in zip(self.layers, choice.names, strict=True)
        }
        self.check_block_size = block_size if device.type == "cuda" else 4
        """See ModelPath. On a GPU, implementations were chosen for the real block size."""
        element = torch.empty((), dtype=dtype).element_size()
        sizes = {
            key: layer.num_kv_heads * (layer.key_size + layer.value_size) * element
            for key, layer in self.layers.items()
            if layer.source is None
        }
        windows = {key: self._chunks.get(key[0], layer.window) for key, layer in self.layers.items()}
        self._windowed = {key for key, window in windows.items() if window}
        self.needs = CacheNeeds(
            sum(sizes.values()),
            window_bytes_per_token=sum(size for key, size in sizes.items() if key in self._windowed),
            window_tokens=max(windows.values(), default=0),
            bytes_per_sequence=sum(geometry.num_bytes for geometry in self._states.values()),
        )
        self._window_blocks: WindowBlocks | None = None
        """None where windows are as long as the cache, so that no block is freed early."""
        self._num_blocks = 0
        self._may_replay = True
        self._keys: dict[LayerKey, torch.Tensor] = {}
        self._values: dict[LayerKey, torch.Tensor] = {}
        if record and self.attention_name == "cpu":
            self._record()
        if decode_sizes and (lengths is not None or self._states):
            decode_sizes = ()
            reason = "layers keep a recurrent state" if self._states else "rotary frequencies depend on the length"
            self.notes = [*self.notes, f"decodes without graphs: {reason}"]
        self._decodes = DecodeGraphs(decode_sizes, self._run_decode, device) if decode_sizes else None

    def _record(self) -> None:
        def forward(input_ids: torch.Tensor, position_ids: torch.Tensor, kept: torch.Tensor, step: Any) -> torch.Tensor:
            return self._call_model(input_ids, position_ids, kept, step)

        try:
            with nullcontext() if self._lengths is None else self._lengths.tables():
                self._recorded = RecordedModel(
                    self._model, forward, self._chunks, self._sharing, self._windowed, self._lengths
                )
        except (RecordError, ValueError) as error:
            self.notes = [f"runs its own code: {error}"]
        else:
            self.notes = [f"runs {self._recorded.num_operations} recorded operations"]

    @property
    def is_recorded(self) -> bool:
        """See ModelPath."""
        return self._recorded is not None

    @property
    def foreign_operations(self) -> list[str]:
        """See ModelPath."""
        return self._recorded.foreign_operations if self._recorded is not None else []

    @property
    def decode_sizes(self) -> list[int]:
        """See ModelPath."""
        return self._decodes.sizes if self._decodes is not None else []

    @property
    def cache_bytes(self) -> int:
        """See ModelPath. Keys and values that layers share count once."""
        caches = {id(cache): cache for cache in (*self._keys.values(), *self._values.values())}
        return sum(cache.nbytes for cache in caches.values()) + (self._pool.num_bytes if self._pool else 0)

    def give_up_shortcut(self, reason: str) -> str | None:
        """See ModelPath. Graphs go first, then recorded operations."""
        if self._decodes is not None:
            self._drop_decodes(reason)
            return "decode steps as they were recorded in graphs"
        if self._recorded is not None:
            self._recorded = None
            self.notes = [f"runs its own code: {reason}"]
            return "the model's operations as they were recorded"
        return None

    def _drop_decodes(self, reason: str) -> None:
        self._decodes = None
        self.notes = [*self.notes, f"decodes without graphs: {reason}"]

    def allocate(self, limits: "pb.WarmupRequest", num_blocks: int) -> None:
        """See ModelPath. Blocks for padding lie after the router's."""
        # Dropped first, so that their memory is free again.
        self._keys, self._values, self._pool = {}, {}, None
        self._num_blocks = num_blocks
        if self._states:
            self._pool = StatePool(self._states, limits.max_sequences, self._device)
        if self._decodes is not None:
            self._decodes.clear()
        # Blocks of the shard's own pool cannot be shared: with a prefix cache all layers keep the whole context.
        window = 0 if limits.prefix_cache else self.needs.window_tokens
        self._window_blocks = None
        if window and most_in_use(window, limits) < num_blocks:
            # As wide as a table of the router's blocks.
            longest = _longest(limits, num_blocks)
            self._window_blocks = WindowBlocks(window, limits, table_width(longest, limits.block_size_tokens) + 1)
        for index, layer in self.layers.items():
            in_window = self._window_blocks if index in self._windowed else None
            if layer.source is not None:
                self._keys[index], self._values[index] = self._keys[layer.source], self._values[layer.source]
                continue
            self._keys[index], self._values[index] = self._attention[index].allocate(
                (in_window.num_blocks if in_window else num_blocks) + SPARE_BLOCKS,
                limits.block_size_tokens,
                layer.num_kv_heads,
                (layer.key_size, layer.value_size),
                self._dtype,
                self._device,
            )
        prefault.populate((*self._keys.values(), *self._values.values()))
        if self._recorded is not None:
            self._recorded.bind(self._keys, self._values, _longest(limits, num_blocks), self._pool)
        if num_blocks:
            self._prepare_decodes(limits, num_blocks)

    def spoil_cache(self, value: float) -> None:
        """See ModelPath. Spare blocks stay as they are."""
        for key in self.layers:
            for cache, filling in ((self._keys[key], 0.0), (self._values[key], value)):
                spare = SPARE_BLOCKS * (len(cache) // self._cache_blocks(key))
                cache[: len(cache) - spare] = filling
        if self._pool is not None:
            self._pool.fill(value)

    def _cache_blocks(self, key: LayerKey) -> int:
        """Blocks of a layer's cache, spare ones included."""
        blocks = self._window_blocks.num_blocks if self._window_blocks and key in self._windowed else self._num_blocks
        return blocks + SPARE_BLOCKS

    def _prepare_decodes(self, limits: "pb.WarmupRequest", num_blocks: int) -> None:
        """Records decode steps. A model that cannot be recorded runs its decodes like other steps."""
        if self._decodes is None:
            return
        size = limits.block_size_tokens
        # As wide as the block table of all sequences: see SequenceTable.
        space = BlockSpace(size, table_width(_longest(limits, num_blocks), size), num_blocks)
        window_space = None
        if (blocks := self._window_blocks) is not None:
            window_space = BlockSpace(size, space.max_blocks, blocks.null_block)
        try:
            self._decodes.prepare(limits.max_sequences, space, window_space)
        except Exception as error:  # a model's code may do anything that a graph cannot hold
            reason = one_line(error, typed=True)
            logger.warning(f"decode steps cannot be recorded as graphs, and run without: {reason}")
            self._drop_decodes(reason)

    def forward(self, batch: "StepBatch", table: "SequenceTable", extra: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """See ModelPath."""
        kept = wanted_tokens(batch, extra)
        if self.replays(len(batch.sequence_ids), len(batch.positions)):
            logits = self.decode(batch, table)
            return logits if len(kept) == len(logits) else logits[to_device(kept, self._device)], kept
        if self._window_blocks is not None:
            self._window_blocks.reserve(batch.sequence_ids, batch.positions[batch.last] + 1)
        # A model computes at least one row of logits.
        rows = kept if len(kept) else batch.last[:1]
        lengths = table.call_lengths(batch) if self._lengths is not None else None
        step = self._step(batch, table)
        logits = self._call(batch.input_ids, batch.positions, rows, step, batch.device_tokens, lengths)[: len(kept)]
        if self._window_blocks is not None:
            # The next step may begin right after the last token that is no draft.
            self._window_blocks.trim(batch.sequence_ids, batch.positions[batch.last] + 1 - batch.num_drafts)
        return logits, kept

    def logits_at(self, batch: "StepBatch", table: "SequenceTable", positions: np.ndarray) -> torch.Tensor:
        """See ModelPath."""
        tokens, at, rows = (
            to_device(array, self._device)
            for array in (batch.input_ids[None], positions[None], np.arange(len(positions)))
        )
        if self._window_blocks is not None:
            self._window_blocks.reserve(batch.sequence_ids, batch.positions[batch.last] + 1)
        with self._lengths.of(positions + 1) if self._lengths is not None else nullcontext():
            return self._call_model(tokens, at, rows, self._step(batch, table))[0]

    def replays(self, num_sequences: int, num_tokens: int) -> bool:
        """Returns whether a step with these numbers of sequences and tokens is replayed."""
        return self._decodes is not None and self._may_replay and self._decodes.takes(num_sequences, num_tokens)

    @contextmanager
    def without_replays(self) -> Iterator[None]:
        """See ModelPath."""
        self._may_replay = False
        try:
            yield
        finally:
            self._may_replay = True

    def decode(self, batch: "StepBatch", table: "SequenceTable") -> torch.Tensor:
        """Replays a step. Returns logits `[B, vocab_size]` of all sequences, which the next step overwrites."""
        assert self._decodes is not None
        ends = batch.positions + 1
        if self._window_blocks is not None:
            self._window_blocks.reserve(batch.sequence_ids, ends)
        logits = self._decodes.run(
            batch.input_ids, batch.positions, self._decode_places(batch, table), batch.device_tokens
        )
        if self._window_blocks is not None:
            self._window_blocks.trim(batch.sequence_ids, ends)
        return logits

    def _step(self, batch: "StepBatch", table: "SequenceTable") -> PagedStep:
        layout = table.layout(batch, self._device)
        far = None
        if (blocks := self._window_blocks) is not None:
            places = _places(blocks.tables, batch, layout.block_tables.shape[1], blocks.block_size)
            far = replace(
                layout,
                block_tables=to_device(places.tables, self._device),
                slots=to_device(places.slots, self._device),
                null_slot=blocks.null_block * blocks.block_size,
                derived={},
            )
        states = None
        if self._states:
            states = state_layout(batch.sequence_ids, batch.num_tokens, batch.positions, self._device)
        return self._paged_step(layout, far, states)

    def _paged_step(
        self, layout: PagedLayout, window_layout: PagedLayout | None, states: "StateLayout | None" = None
    ) -> PagedStep:
        step = PagedStep(self._keys, self._values, layout, self._attention, self._chunks, self._sharing)
        step.pool, step.states = self._pool, states
        if window_layout is not None:
            step.windowed, step.window_layout = self._windowed, window_layout
        return step

    def _decode_places(self, batch: "StepBatch", table: "SequenceTable") -> list[StepPlaces]:
        width = table_width(int(batch.positions.max()) + 1, table.block_size)
        spaces = [table.block_tables]
        if self._window_blocks is not None:
            spaces.append(self._window_blocks.tables)
        return [_places(tables, batch, width, table.block_size) for tables in spaces]

    def _run_decode(self, inputs: DecodeInputs) -> torch.Tensor:
        step = self._paged_step(inputs.layout, inputs.window_layout)
        return self._call_on_device(inputs.input_ids, inputs.position_ids, inputs.kept, step)

    def release(self, ids: np.ndarray) -> None:
        """See ModelPath. Only blocks of windows are freed here; the others are the router's."""
        if self._window_blocks is not None:
            self._window_blocks.release(np.unique(ids))

    def reset(self) -> None:
        """See ModelPath."""
        if self._window_blocks is not None:
            self._window_blocks.release(np.arange(len(self._window_blocks.tables)))

    def _call(
        self,
        input_ids: np.ndarray,
        positions: np.ndarray,
        kept: np.ndarray,
        step: Any,
        device_tokens: DeviceTokens | None = None,
        lengths: np.ndarray | None = None,
    ) -> torch.Tensor:
        """Runs the model over a flat batch. lengths: see `CallLengths.of`. Returns logits `[len(kept), vocab_size]`."""
        of_tokens: AbstractContextManager[None] = nullcontext()
        if lengths is not None and self._lengths is not None:
            if self._recorded is None:
                of_tokens = self._lengths.of(lengths)
            else:
                positions = self._lengths.rows(positions, lengths)
        tokens, at, rows = (to_device(array, self._device) for array in (input_ids[None], positions[None], kept))
        if device_tokens is not None:
            device_tokens.put_into(tokens[0])
        with of_tokens:
            return self._call_on_device(tokens, at, rows, step)

    def _call_on_device(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, kept: torch.Tensor, step: Any
    ) -> torch.Tensor:
        if self._recorded is not None and isinstance(step, PagedStep):
            return self._recorded.run(input_ids, position_ids, kept, step.layout, step.window_layout, step.states)[0]
        return self._call_model(input_ids, position_ids, kept, step)[0]

    def _call_model(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, kept: torch.Tensor, step: Any
    ) -> torch.Tensor:
        """Runs the model's own code. Returns logits `[1, K, vocab_size]`."""
        arguments: dict[str, Any] = {"logits_to_keep": kept} if self._keeps_logits else {}
        with self._state_cache(step) as cache, running(step):
            arguments |= cache | {ARGUMENT: step}
            out = self._model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **arguments)
        logits: torch.Tensor = out.logits
        return logits if self._keeps_logits else logits[:, kept]

    @contextmanager
    def _state_cache(self, step: Any) -> Iterator[dict[str, Any]]:
        """Gives the argument of `forward()` that makes layers use recurrent states of ours, where a model has any."""
        if not self._has_states:
            yield {}
            return
        from gridwork_server.recurrent.cache import StateCache, used

        with used(StateCache(step)) as cache:
            yield {cache_name(self._model): cache}


def _longest(limits: "pb.WarmupRequest", num_blocks: int) -> int:
    """Maximum number of tokens of a sequence, those of a step in flight included; see SequenceTable."""
    return (limits.max_total_tokens or num_blocks * limits.block_size_tokens) + 2


def table_width(num_tokens: int, block_size: int) -> int:
    """Number of blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


def _places(tables: np.ndarray, batch: "StepBatch", width: int, block_size: int) -> StepPlaces:
    """Places of a step's tokens. tables: block tables of all sequences, int32 `[max_sequences, max_blocks]`."""
    own = np.ascontiguousarray(tables[batch.sequence_ids, :width])
    of_token = own[batch.row, batch.positions // block_size].astype(np.int64)
    return StepPlaces(own, of_token * block_size + batch.positions % block_size)


def keeps_logits(model: "nn.Module") -> bool:
    """Returns whether `forward()` takes `logits_to_keep`."""
    from inspect import signature

    return "logits_to_keep" in signature(model.forward).parameters


def cache_name(model: "nn.Module") -> str:
    """Name of the cache among the arguments of `forward()`."""
    from inspect import signature

    return "cache_params" if "cache_params" in signature(model.forward).parameters else "past_key_values"
