"""Loads a model of any architecture that generates text, and chooses its fastest path."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from loguru import logger
from torch import nn

from gridwork_server import attention, logs
from gridwork_server.checkpoint import quantized_checkpoint
from gridwork_server.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.lengths.call_lengths import CallLengths
from gridwork_server.model import dequantizing
from gridwork_server.model import folder as model_folder
from gridwork_server.model.code import find_model_class, read_config
from gridwork_server.model.context_length import context_tokens
from gridwork_server.model.generation_defaults import GenerationDefaults
from gridwork_server.model.generation_defaults import read as read_generation_defaults
from gridwork_server.model.load_errors import check_shapes, load_errors
from gridwork_server.model.token_bounds import embedding_rows
from gridwork_server.parallel.group import RankGroup, device_of
from gridwork_server.paths.base import ModelPath
from gridwork_server.paths.choice import Choice, choose
from gridwork_server.paths.decode_graphs import DEFAULT_SIZES
from gridwork_server.startup import deferred_imports
from gridwork_server.text import some

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass
class LoadedModel:
    """A model that is ready to run, and its properties."""

    model: nn.Module
    config: "PretrainedConfig"
    dtype: torch.dtype
    device: torch.device
    path: ModelPath
    path_reason: str
    """Reason why no faster path was chosen; empty for the fastest."""
    vocab_size: int
    eos_token_ids: list[int]
    generation: GenerationDefaults
    max_context_tokens: int
    """Maximum length of a sequence; 0: the config has no limit."""
    num_parameters: int
    """Number of parameters over all ranks."""
    weight_bytes: int
    """Memory of weights over all ranks."""
    notes: list[str]
    input_vocab_size: int = 0
    """Number of rows of the embedding; 0: unknown."""
    lengths: CallLengths | None = None
    """Modules of the model that depend on how many tokens are computed together."""


def load(config: ShardConfig, group: RankGroup) -> LoadedModel:
    """Loads this rank's part of the model. Raises ModelError."""
    content = model_folder.check(config)
    logs.adopt_transformers()
    attention.register()
    model_config = read_config(config, content)
    generation = read_generation_defaults(config.model_path, model_config, config.generation_config)
    model_class = find_model_class(model_config, config)
    dtype = dtype_of(config.dtype, model_config)
    device = device_of(config)
    _check_attention(config, dtype, device)
    if config.quantize:
        _check_quantization(config, device)
    quantized = quantized_checkpoint.recognize(config.model_path, content)
    model: Any
    split_notes: list[str] = []
    if group.world_size == 1:
        split_notes = dequantizing.prepare(
            quantized, model_config, config.model_path, dtype, model_class._keys_to_ignore_on_load_unexpected or ()
        )
        model = _load_whole(model_class, model_config, config, dtype, quantized)
        num_parameters, weight_bytes = size_of(model)
    else:
        from gridwork_server.parallel.loading import load_part

        attention_name = attention.NAME if _takes_our_attention(model_class, model_config, config) else None
        part = load_part(model_class, model_config, config.model_path, dtype, group, attention_name)
        model, num_parameters, split_notes = part.model, part.num_parameters, part.notes
        (weight_bytes,) = group.sum([part.weight_bytes])
    model = model.to(device).eval().requires_grad_(False)
    if device.type == "cpu" and group.world_size == 1 and (config.quantize or config.fuse):
        _make_linears_plain(model)
    notes = _quantize(model, config.quantize, group.world_size) if config.quantize else []
    if config.fuse and device.type == "cpu":
        notes += _use_own_layers(model)
        if group.world_size == 1:
            notes += _use_own_experts(model)
    choice = _choose_compiled(model, config, dtype, device, group) if config.compile else None
    if choice is not None:
        notes.append("compiled")
    else:
        choice = choose(
            model,
            config.model_impl,
            config.attention,
            dtype,
            device,
            group,
            record=config.fuse,
            block_size=config.block_size,
            decode_sizes=_decode_sizes(config, device),
        )
    return LoadedModel(
        model=model,
        config=model_config,
        dtype=dtype,
        device=device,
        path=choice.path,
        path_reason=choice.reason,
        vocab_size=choice.vocab_size,
        eos_token_ids=generation.eos_token_ids,
        generation=generation,
        max_context_tokens=context_tokens(model_config, model),
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
        notes=[*split_notes, *notes, *choice.path.notes],
        input_vocab_size=embedding_rows(model),
        lengths=choice.lengths,
    )


def _check_attention(config: ShardConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Checks the attention settings before weights are read. Raises ModelError."""
    from gridwork_kernels import attention_choice

    try:
        attention_choice.check(config.attention, attention_choice.Setting(device, dtype, config.block_size))
    except ValueError as error:
        raise ModelError(str(error)) from None
    if config.attention != "auto" and config.model_impl in ("batched", "solo"):
        raise ModelError(
            f"--attention {config.attention} chooses among the implementations of the paged path, and --model-impl "
            f"{config.model_impl} uses the model's own attention; leave one of them out"
        )


def _decode_sizes(config: ShardConfig, device: torch.device) -> tuple[int, ...]:
    """Numbers of sequences for which decode steps are recorded as CUDA graphs."""
    if device.type != "cuda":
        return ()
    if config.cuda_graphs is not None:
        return config.cuda_graphs
    # A rank that could not record a step would leave the others waiting in it.
    return DEFAULT_SIZES if config.world_size == 1 else ()


def _check_quantization(config: ShardConfig, device: torch.device) -> None:
    """Checks `--quantize` before weights are read. Raises ModelError."""
    from gridwork_kernels import cpu_library

    if device.type != "cpu" or cpu_library.load() is None:
        raise ModelError(
            f"--quantize {config.quantize} needs an x86-64 CPU with AVX2, and the model would run on {device}; "
            "leave it out"
        )


def _make_linears_plain(model: nn.Module) -> None:
    from gridwork_kernels import transposed_linear

    transposed_linear.make_plain(model)


def _quantize(model: Any, method: str, num_ranks: int) -> list[str]:
    """Quantizes layers. Returns notes of it. Raises ModelError when no layer can be quantized."""
    from gridwork_kernels import experts, packed_linear, quantized_linear

    head = model.get_output_embeddings()
    count = quantized_linear.quantize_linears(model, method, getattr(head, "local", head))
    layers, refused = experts.pack_experts(model, method) if num_ranks == 1 else (0, 0)
    if count + layers == 0:
        raise ModelError(
            f"--quantize {method} has no effect on {type(model).__name__}: it has no plain linear layers or experts of "
            f"at least {packed_linear.panel_features()} output features and a multiple of {quantized_linear.GROUP} "
            "input features; leave it out"
        )
    notes = [f"{count} linear layers in {method}"] + ([f"experts of {layers} layers in {method}"] if layers else [])
    return [*notes, *_left_alone(refused)]


def _takes_our_attention(
    model_class: type["PreTrainedModel"], model_config: "PretrainedConfig", config: ShardConfig
) -> bool:
    """True if the model's layers may call the attention function that its config names. Decoders whose layers keep more
    than keys and values do not say so, and the module that they come from is looked at."""
    if config.model_impl not in ("auto", "paged"):
        return False
    if getattr(model_class, "_supports_attention_backend", False):
        return True
    module = sys.modules.get(model_class.__module__)
    return not model_config.is_encoder_decoder and hasattr(module, "ALL_ATTENTION_FUNCTIONS")


def dtype_of(name: str, model_config: "PretrainedConfig") -> torch.dtype:
    """Data type with this name; `auto` is that of the config, or float32."""
    if name != "auto":
        return getattr(torch, name)
    dtype = getattr(model_config, "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _load_whole(
    model_class: type["PreTrainedModel"],
    model_config: "PretrainedConfig",
    config: ShardConfig,
    dtype: torch.dtype,
    quantized: QuantizedCheckpoint | None,
) -> nn.Module:
    model: nn.Module
    info: dict[str, Any]
    with load_errors(config.model_path, f"as {model_class.__name__}", quantized):
        name = attention.NAME if _takes_our_attention(model_class, model_config, config) else None
        try:
            try:
                model, info = _from_pretrained(model_class, model_config, config, dtype, name)
            except KeyError as error:
                # The class has a table of its own of attention functions.
                if name is None or name not in error.args:
                    raise
                name = None
                model, info = _from_pretrained(model_class, model_config, config, dtype, name)
        except NotImplementedError:
            # The model is built of tensors without data. Some operations need these imports for such tensors.
            if not deferred_imports.import_effects():
                raise
            model, info = _from_pretrained(model_class, model_config, config, dtype, name)
    dequantizing.check_loaded(model, info, config.model_path, quantized)
    check_shapes(info, config.model_path)
    if info["missing_keys"]:
        raise ModelError(
            f"the weights in {config.model_path} lack {some(info['missing_keys'])}; the folder is incomplete, "
            "download the model again"
        )
    if info["unexpected_keys"]:
        logger.warning(f"the weights have tensors that the model does not use: {some(info['unexpected_keys'])}")
    return model


def _choose_compiled(
    model: Any, config: ShardConfig, dtype: torch.dtype, device: torch.device, group: RankGroup
) -> Choice | None:
    """Chooses the paged path with a compiled model. When that fails, warns, restores the model and returns None."""
    from gridwork_server.model.compile import Compiled, cache_folder

    folder = cache_folder((config.model_path / "config.json").read_bytes(), dtype)
    logger.info(f"compiling, or reading compiled code from {folder}")
    compiled = Compiled(model, folder)
    try:
        return choose(model, "paged", config.attention, dtype, device, group)
    except ModelError as error:
        compiled.undo()
        logger.warning(f"--compile is without effect, since the compiled model cannot be used: {error}")
        return None


def _from_pretrained(
    model_class: Any,
    model_config: "PretrainedConfig",
    config: ShardConfig,
    dtype: torch.dtype,
    attention_name: str | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and the names of weights that differ between model and files."""
    loaded: tuple[nn.Module, dict[str, Any]] = model_class.from_pretrained(
        config.model_path,
        config=model_config,
        dtype=dtype,
        attn_implementation=attention_name,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the caller reports them, by name
    )
    return loaded


def _use_own_layers(model: Any) -> list[str]:
    """Replaces layers by our own, on CPUs. Returns notes of it."""
    from gridwork_kernels import cpu_library, gated_norm, rms_norm

    notes = _use_own_linears(model)
    if cpu_library.load() and (fused := rms_norm.fuse_norms(model) + gated_norm.fuse_gated_norms(model)):
        notes.append(f"{fused} RMS norms fused")
    return notes


def _use_own_linears(model: Any) -> list[str]:
    from gridwork_kernels import cpu_library, packed_linear

    notes = []
    head = model.get_output_embeddings()
    if head is not None and packed_linear.widen_head(model, getattr(head, "local", head)):
        notes.append("logits in float32")
    isa = cpu_library.load()
    if isa is None:
        return notes
    return [*notes, f"{packed_linear.pack_linears(model)} linear layers packed for {isa}"]


def _use_own_experts(model: Any) -> list[str]:
    from gridwork_kernels import cpu_library, experts

    if not cpu_library.load():
        return []
    count, refused = experts.pack_experts(model)
    return ([f"experts of {count} layers packed"] if count else []) + _left_alone(refused)


def _left_alone(layers: int) -> list[str]:
    reason = "their output does not match their declared layout"
    return [f"left the experts of {layers} layers unpacked: {reason}"] if layers else []


def size_of(model: nn.Module) -> tuple[int, int]:
    """Number of parameters of a model, and their bytes."""
    parameters = {id(parameter): parameter for parameter in model.parameters()}.values()
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
