"""The fast path: one flat batch of tokens, keys and values in blocks that the router hands out."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gridwork_kernels import paged_attention
from gridwork_server.attention import ARGUMENT, LayerGeometry, LayerKey, PagedStep, Probe
from gridwork_server.errors import ModelError
from gridwork_server.paths.base import CacheNeeds, PathError, wanted_tokens

if TYPE_CHECKING:
    from torch import nn

    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.sequence_table import SequenceTable, StepBatch


class PagedPath:
    """Runs a model whose layers call our attention function."""

    name = "paged"

    def __init__(self, model: "nn.Module", dtype: torch.dtype, device: torch.device, attention: str) -> None:
        """Runs one token through the model, to see what every layer writes to the cache. attention: name of an
        implementation, or `auto`. Raises PathError when the model cannot run so, ModelError when the attention that was
        asked for cannot be used."""
        self._model, self._dtype, self._device = model, dtype, device
        self._keeps_logits = keeps_logits(model)
        probe = Probe()
        with torch.inference_mode():
            token = np.zeros(1, dtype=np.int64)
            self._call(token, token, np.zeros(1, dtype=np.int64), probe)
        if not probe.layers:
            raise PathError(f"{type(model).__name__} never calls the attention function of its config")
        self.layers = probe.layers
        """By layer: what it writes to the cache, on this rank."""
        self._chunks = _chunks(model)
        _check_cache_kinds(model, self.layers, self._chunks)
        heads = {(layer.key_size, layer.value_size) for layer in self.layers.values()}
        try:
            self.attention_name = paged_attention.choose(attention, device, dtype, heads)
        except ValueError as error:
            raise ModelError(str(error)) from None
        self._attention = paged_attention.IMPLEMENTATIONS[self.attention_name]
        element = torch.empty((), dtype=dtype).element_size()
        self.needs = CacheNeeds(
            sum(layer.num_kv_heads * (layer.key_size + layer.value_size) * element for layer in self.layers.values())
        )
        self._keys: dict[LayerKey, torch.Tensor] = {}
        self._values: dict[LayerKey, torch.Tensor] = {}

    def allocate(self, limits: "pb.WarmupRequest", num_blocks: int) -> None:
        """See ModelPath. One block more than the router's, which stays zero."""
        # Dropped first, so that the memory can be had again.
        self._keys, self._values = {}, {}
        slots = (num_blocks + 1) * limits.block_size_tokens
        for index, layer in self.layers.items():
            for cache, width in ((self._keys, layer.key_size), (self._values, layer.value_size)):
                cache[index] = torch.empty(slots, layer.num_kv_heads, width, dtype=self._dtype, device=self._device)
                cache[index][-limits.block_size_tokens :] = 0

    def forward(self, batch: "StepBatch", table: "SequenceTable", extra: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """See ModelPath."""
        kept = wanted_tokens(batch, extra)
        step = PagedStep(self._keys, self._values, table.layout(batch, self._device), self._attention, self._chunks)
        # A model computes at least one row of logits.
        logits = self._call(batch.input_ids, batch.positions, kept if len(kept) else batch.last[:1], step)
        return logits[: len(kept)], kept

    def release(self, ids: np.ndarray) -> None:
        """See ModelPath. Blocks are the router's."""

    def reset(self) -> None:
        """See ModelPath."""

    def _call(self, input_ids: np.ndarray, positions: np.ndarray, kept: np.ndarray, step: Any) -> torch.Tensor:
        """Logits `[len(kept), vocab_size]`."""
        index = torch.from_numpy(kept).to(self._device)
        arguments: dict[str, Any] = {"logits_to_keep": index} if self._keeps_logits else {}
        out = self._model(
            input_ids=torch.from_numpy(input_ids)[None].to(self._device),
            position_ids=torch.from_numpy(positions)[None].to(self._device),
            use_cache=False,
            **arguments,
            **{ARGUMENT: step},
        )
        logits: torch.Tensor = out.logits[0]
        return logits if self._keeps_logits else logits[index]


def _chunks(model: Any) -> dict[int, int]:
    """By layer that attends within chunks: positions in a chunk. Transformers tells them by the mask that the config's
    layer types ask for, and our attention function gets no mask."""
    config = model.config.get_text_config(decoder=True)
    size = getattr(config, "attention_chunk_size", None)
    types = getattr(config, "layer_types", None) or []
    return {i: int(size) for i, kind in enumerate(types) if kind == "chunked_attention"} if size else {}


def _check_cache_kinds(model: Any, layers: dict[LayerKey, LayerGeometry], chunks: dict[int, int]) -> None:
    """Compares what layers were seen to do with the cache that `generate()` would give them. Raises PathError."""
    from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

    for i, kind in enumerate(DynamicCache(config=model.config).layers):
        if isinstance(kind, LinearAttentionCacheLayerMixin):
            raise PathError(f"layer {i} keeps a recurrent state")
        geometry = layers.get((i, 0))
        slides = bool(getattr(kind, "is_sliding", False))
        if geometry is not None and slides != (geometry.window > 0 or i in chunks):
            raise PathError(f"the cache of layer {i} {'slides' if slides else 'does not slide'}, unlike its attention")


def keeps_logits(model: "nn.Module") -> bool:
    """Whether `forward()` takes `logits_to_keep`."""
    from inspect import signature

    return "logits_to_keep" in signature(model.forward).parameters
