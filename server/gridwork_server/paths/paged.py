"""The fast path: one flat batch of tokens, keys and values in blocks that the router hands out."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gridwork_kernels import paged_attention
from gridwork_kernels.paged_attention import PagedLayout
from gridwork_server.attention import ARGUMENT, LayerGeometry, LayerKey, PagedStep, Probe
from gridwork_server.errors import ModelError
from gridwork_server.graph.record import RecordError
from gridwork_server.graph.recorded_model import RecordedModel
from gridwork_server.paths.base import CacheNeeds, PathError, wanted_tokens
from gridwork_server.paths.window_blocks import WindowBlocks, most_in_use

if TYPE_CHECKING:
    from torch import nn

    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.sequence_table import SequenceTable, StepBatch


class PagedPath:
    """Runs a model whose layers call our attention function."""

    name = "paged"
    shares_blocks = True

    def __init__(
        self, model: "nn.Module", dtype: torch.dtype, device: torch.device, attention: str, record: bool = False
    ) -> None:
        """Runs one token through the model, to see what every layer writes to the cache. attention: name of an
        implementation, or `auto`; record: run recorded operations instead of the model's code, where that can be.
        Raises PathError when the model cannot run so, ModelError when the attention asked for cannot be used."""
        self._model, self._dtype, self._device = model, dtype, device
        self._keeps_logits = keeps_logits(model)
        self._recorded: RecordedModel | None = None
        self.notes: list[str] = []
        """For people to read: how it runs."""
        _check_cache_kinds(model)
        probe = Probe()
        with torch.inference_mode():
            token = np.zeros(1, dtype=np.int64)
            self._call(token, token, np.zeros(1, dtype=np.int64), probe)
        if not probe.layers:
            raise PathError(f"{type(model).__name__} never calls the attention function of its config")
        self.layers = probe.layers
        """By layer: what it writes to the cache, on this rank."""
        self._chunks = _chunks(model)
        self._sharing = {key for key, layer in self.layers.items() if layer.source is not None}
        _check_windows(model, self.layers, self._chunks)
        try:
            self.attention_name = paged_attention.choose(attention, device, dtype)
        except ValueError as error:
            raise ModelError(str(error)) from None
        self._attention = paged_attention.IMPLEMENTATIONS[self.attention_name]
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
            window_tokens=max(windows.values()),
        )
        self._window_blocks: WindowBlocks | None = None
        """None where windows are as long as the cache, and there is nothing to give back."""
        self._keys: dict[LayerKey, torch.Tensor] = {}
        self._values: dict[LayerKey, torch.Tensor] = {}
        if record and self.attention_name == "cpu":
            self._record()

    def _record(self) -> None:
        def forward(input_ids: torch.Tensor, position_ids: torch.Tensor, kept: torch.Tensor, step: Any) -> torch.Tensor:
            return self._call_model(input_ids, position_ids, kept, step)

        try:
            self._recorded = RecordedModel(self._model, forward, self._chunks, self._sharing, self._windowed)
        except RecordError as error:
            self.notes = [f"runs its own code: {error}"]
        else:
            self.notes = [f"runs {self._recorded.num_operations} recorded operations"]

    @property
    def is_recorded(self) -> bool:
        """Whether it runs recorded operations."""
        return self._recorded is not None

    def drop_record(self, reason: str) -> None:
        """Runs the model's own code from now on."""
        self._recorded = None
        self.notes = [f"runs its own code: {reason}"]

    def allocate(self, limits: "pb.WarmupRequest", num_blocks: int) -> None:
        """See ModelPath. One block more than the router's, which stays zero."""
        # Dropped first, so that the memory can be had again.
        self._keys, self._values = {}, {}
        # Blocks of a pool of our own could not be shared: with a prefix cache all layers keep the whole context.
        window = 0 if limits.prefix_cache else self.needs.window_tokens
        self._window_blocks = None
        if window and most_in_use(window, limits) < num_blocks:
            # As many as a table of the router's blocks has at most.
            longest = limits.max_total_tokens + 2 if limits.max_total_tokens else num_blocks * limits.block_size_tokens
            self._window_blocks = WindowBlocks(window, limits, -(-longest // limits.block_size_tokens) + 1)
        for index, layer in self.layers.items():
            in_window = self._window_blocks if index in self._windowed else None
            if layer.source is not None:
                self._keys[index], self._values[index] = self._keys[layer.source], self._values[layer.source]
                continue
            self._keys[index], self._values[index] = self._attention.allocate(
                (in_window.num_blocks if in_window else num_blocks) + 1,
                limits.block_size_tokens,
                layer.num_kv_heads,
                (layer.key_size, layer.value_size),
                self._dtype,
                self._device,
            )
        if self._recorded is not None:
            self._recorded.bind(self._keys, self._values)

    def forward(self, batch: "StepBatch", table: "SequenceTable", extra: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """See ModelPath."""
        kept = wanted_tokens(batch, extra)
        layout = table.layout(batch, self._device)
        step = PagedStep(self._keys, self._values, layout, self._attention, self._chunks, self._sharing)
        if self._window_blocks is not None:
            self._window_blocks.reserve(batch.sequence_ids, batch.positions[batch.last] + 1)
            step.windowed = self._windowed
            step.window_layout = self._layout_in_windows(layout, batch, self._window_blocks)
        # A model computes at least one row of logits.
        logits = self._call(batch.input_ids, batch.positions, kept if len(kept) else batch.last[:1], step)
        if self._window_blocks is not None:
            self._window_blocks.trim(batch.sequence_ids, batch.positions[batch.last] + 1)
        return logits[: len(kept)], kept

    def _layout_in_windows(self, layout: PagedLayout, batch: "StepBatch", blocks: WindowBlocks) -> PagedLayout:
        tables = np.ascontiguousarray(blocks.tables[batch.sequence_ids, : layout.block_tables.shape[1]])
        of_token = tables[batch.row, batch.positions // blocks.block_size].astype(np.int64)
        slots = of_token * blocks.block_size + batch.positions % blocks.block_size
        return replace(
            layout,
            block_tables=torch.from_numpy(tables).to(self._device),
            slots=torch.from_numpy(slots).to(self._device),
            null_slot=blocks.null_block * blocks.block_size,
            derived={},
        )

    def release(self, ids: np.ndarray) -> None:
        """See ModelPath. Other blocks are the router's."""
        if self._window_blocks is not None:
            self._window_blocks.release(np.unique(ids))

    def reset(self) -> None:
        """See ModelPath."""
        if self._window_blocks is not None:
            self._window_blocks.release(np.arange(len(self._window_blocks.tables)))

    def _call(self, input_ids: np.ndarray, positions: np.ndarray, kept: np.ndarray, step: Any) -> torch.Tensor:
        """Logits `[len(kept), vocab_size]`."""
        tokens, at, rows = (torch.from_numpy(a).to(self._device) for a in (input_ids[None], positions[None], kept))
        if self._recorded is not None and isinstance(step, PagedStep):
            return self._recorded.run(tokens, at, rows, step.layout, step.window_layout)[0]
        return self._call_model(tokens, at, rows, step)[0]

    def _call_model(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, kept: torch.Tensor, step: Any
    ) -> torch.Tensor:
        """Logits `[1, K, vocab_size]`."""
        arguments: dict[str, Any] = {"logits_to_keep": kept} if self._keeps_logits else {}
        out = self._model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **arguments, **{ARGUMENT: step}
        )
        logits: torch.Tensor = out.logits
        return logits if self._keeps_logits else logits[:, kept]


def _chunks(model: Any) -> dict[int, int]:
    """By layer that attends within chunks: positions in a chunk. Transformers tells them by the mask that the config's
    layer types ask for, and our attention function gets no mask."""
    config = model.config.get_text_config(decoder=True)
    size = getattr(config, "attention_chunk_size", None)
    types = getattr(config, "layer_types", None) or []
    return {i: int(size) for i, kind in enumerate(types) if kind == "chunked_attention"} if size else {}


def _check_cache_kinds(model: Any) -> None:
    """Looks at the cache that `generate()` would give the model. Raises PathError for layers that keep something else
    than keys and values."""
    from transformers.cache_utils import (
        DynamicCache,
        DynamicIndexedLayer,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionCacheLayerMixin,
    )

    for i, kind in enumerate(DynamicCache(config=model.config).layers):
        if isinstance(kind, LinearAttentionCacheLayerMixin):
            raise PathError(f"layer {i} keeps a recurrent state")
        if isinstance(kind, DynamicIndexedLayer):
            raise PathError(f"layer {i} attends to the few keys that an index of its own chooses")
        if isinstance(kind, DynamicLayer) and type(kind) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise PathError(f"layer {i} keeps more than keys and values ({type(kind).__name__})")


def _check_windows(model: Any, layers: dict[LayerKey, LayerGeometry], chunks: dict[int, int]) -> None:
    """Compares what layers were seen to do with the cache that `generate()` would give them. Raises PathError."""
    from transformers.cache_utils import DynamicCache

    for i, kind in enumerate(DynamicCache(config=model.config).layers):
        geometry = layers.get((i, 0))
        if geometry is None or not hasattr(kind, "is_sliding"):
            continue  # has no cache of its own
        slides = bool(kind.is_sliding)
        if slides != (geometry.window > 0 or i in chunks):
            raise PathError(f"the cache of layer {i} {'slides' if slides else 'does not slide'}, unlike its attention")


def keeps_logits(model: "nn.Module") -> bool:
    """Whether `forward()` takes `logits_to_keep`."""
    from inspect import signature

    return "logits_to_keep" in signature(model.forward).parameters
