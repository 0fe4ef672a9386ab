"""Kinds of layers in a model, and whether a paged cache can serve them."""

from typing import Any

from gridwork_kernels.attention_choice import LayerDemands
from gridwork_server.attention import LayerGeometry, LayerKey
from gridwork_server.errors import PathError


def chunks_of(model: Any) -> dict[int, int]:
    """Positions in a chunk, by layer, for layers that attend within chunks. They follow from the config's layer types:
    Transformers expresses chunks by a mask, and our attention function gets none."""
    config = model.config.get_text_config(decoder=True)
    size = getattr(config, "attention_chunk_size", None)
    types = getattr(config, "layer_types", None) or []
    return {i: int(size) for i, kind in enumerate(types) if kind == "chunked_attention"} if size else {}


def has_states(model: Any) -> bool:
    """True if layers keep a recurrent state in the cache that `generate()` would give the model."""
    from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

    return any(isinstance(kind, LinearAttentionCacheLayerMixin) for kind in DynamicCache(config=model.config).layers)


def keeps_only_states(model: Any) -> bool:
    """True if every layer keeps a recurrent state in that cache, and no keys and values."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

    if model.config.is_encoder_decoder:
        return False
    try:
        kinds = DynamicCache(config=model.config).layers
    except Exception:  # a config of custom code may lack what a cache needs
        return False
    return bool(kinds) and all(
        isinstance(kind, LinearAttentionCacheLayerMixin) and not isinstance(kind, DynamicLayer) for kind in kinds
    )


def check_cache_kinds(model: Any) -> None:
    """Looks at the cache that `generate()` would give the model. Raises PathError for layers that keep anything other
    than keys, values and recurrent states."""
    from transformers.cache_utils import (
        DynamicCache,
        DynamicIndexedLayer,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionAndFullAttentionLayer,
        LinearAttentionAndSlidingWindowAttentionLayer,
    )

    known = (
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionAndFullAttentionLayer,
        LinearAttentionAndSlidingWindowAttentionLayer,
    )

    for i, kind in enumerate(DynamicCache(config=model.config).layers):
        if isinstance(kind, DynamicIndexedLayer):
            raise PathError(f"layer {i} attends to the few keys that an index of its own chooses")
        if isinstance(kind, DynamicLayer) and type(kind) not in known:
            raise PathError(f"layer {i} keeps more than keys and values ({type(kind).__name__})")


def check_windows(model: Any, layers: dict[LayerKey, LayerGeometry], chunks: dict[int, int]) -> None:
    """Compares the windows that layers attended with to the cache that `generate()` would give them. Raises
    PathError."""
    from transformers.cache_utils import DynamicCache

    for i, kind in enumerate(DynamicCache(config=model.config).layers):
        geometry = layers.get((i, 0))
        if geometry is None or not hasattr(kind, "is_sliding"):
            continue  # has no cache of its own
        slides = bool(kind.is_sliding)
        if slides != (geometry.window > 0 or i in chunks):
            raise PathError(f"the cache of layer {i} {'slides' if slides else 'does not slide'}, unlike its attention")


def demands_of(layer: LayerGeometry, chunk: int) -> LayerDemands:
    """Requirements of a layer on an implementation of attention. chunk: see chunks_of; 0: none."""
    return LayerDemands(
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        key_size=layer.key_size,
        value_size=layer.value_size,
        window=layer.window,
        chunk=chunk,
        has_softcap=layer.has_softcap,
        has_sinks=layer.has_sinks,
    )
