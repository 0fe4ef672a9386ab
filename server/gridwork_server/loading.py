"""Loads a model of any architecture that supports Transformers' attention interface."""

import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from loguru import logger
from torch import nn

from gridwork_server import attention, logs, model_folder
from gridwork_server.attention import LayerGeometry, Probe
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.memory import free_cpu_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from gridwork_server.group import RankGroup


_LARGEST_SECOND_COPY = 0.25
"""Of free memory, what a second form of the weights may take."""


@dataclass
class LoadedModel:
    """A model that is ready to run, and what was found out about it."""

    model: nn.Module
    config: "PretrainedConfig"
    dtype: torch.dtype
    device: torch.device
    layers: dict[int, LayerGeometry]
    """By `layer_idx`; on this rank."""
    vocab_size: int
    keeps_logits: bool
    """Whether `forward()` takes `logits_to_keep`."""
    eos_token_ids: list[int]
    max_context_tokens: int
    """0 when the config gives no limit."""
    num_parameters: int
    """Over all ranks."""
    weight_bytes: int
    """Over all ranks."""
    notes: list[str]


def load(config: ShardConfig, group: "RankGroup") -> LoadedModel:
    """Loads this rank's part of the model. Raises ModelError."""
    content = model_folder.check(config)
    logs.adopt_transformers()
    attention.register()
    model_config = _read_config(config, content)
    model_class = _model_class(model_config, config)
    dtype = _dtype(config.dtype, model_config)
    device = torch.device("cpu") if config.device == "cpu" else torch.device("cuda", config.rank)
    model: Any
    split_notes: list[str] = []
    if group.world_size == 1:
        model = _load_whole(model_class, model_config, config, dtype)
        num_parameters, weight_bytes = _size(model)
    else:
        from gridwork_server.tensor_parallel import load_part

        part = load_part(model_class, model_config, config.model_path, dtype, group)
        model, num_parameters, split_notes = part.model, part.num_parameters, part.notes
        (weight_bytes,) = group.sum([part.weight_bytes])
    model = model.to(device).eval().requires_grad_(False)
    notes = _use_own_layers(model, dtype, weight_bytes) if config.fuse and device.type == "cpu" else []
    keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    try:
        layers, vocab_size = _probe(model, model_config, keeps_logits, device)
    except (RuntimeError, ValueError, IndexError) as error:
        if group.world_size == 1:
            raise
        raise ModelError(
            f"{type(model).__name__} cannot run with a part of its heads ({_first_line(error)}); use --num-shard 1"
        ) from error
    return LoadedModel(
        model=model,
        config=model_config,
        dtype=dtype,
        device=device,
        layers=layers,
        vocab_size=vocab_size,
        keeps_logits=keeps_logits,
        eos_token_ids=_eos_token_ids(model_config, config.model_path),
        max_context_tokens=_max_context_tokens(model_config),
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
        notes=split_notes + notes,
    )


def _read_config(config: ShardConfig, content: Any) -> "PretrainedConfig":
    """content: of config.json."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = config.model_path
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (ValueError, KeyError, ImportError, OSError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{path / 'config.json'} asks for its own Python code; if you trust it, start with --trust-remote-code"
            ) from None
        if "does not recognize this architecture" in str(error):
            import transformers

            raise ModelError(
                f"{path / 'config.json'} has the model type `{content['model_type']}`, which Transformers "
                f"{transformers.__version__} does not know; the model may need a newer version of Gridwork"
            ) from None
        raise ModelError(f"{path / 'config.json'} cannot be used: {_first_line(error)}") from error


def _model_class(model_config: "PretrainedConfig", config: ShardConfig) -> type["PreTrainedModel"]:
    from transformers import AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = (getattr(model_config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if reference is not None and config.trust_remote_code:
        model_class = get_class_from_dynamic_module(reference, str(config.model_path))
    else:
        mapping = AutoModelForCausalLM._model_mapping
        if type(model_config) not in mapping:
            raise ModelError(
                f"models of type `{model_config.model_type}` do not generate text with a causal language model in the "
                "installed Transformers; "
                + (
                    "this one comes with its own code, start with --trust-remote-code if you trust it"
                    if reference
                    else "this version serves no others, use another model"
                )
            )
        found: Any = mapping[type(model_config)]
        model_class = found[0] if isinstance(found, tuple) else found
    if not getattr(model_class, "_supports_attention_backend", False):
        raise ModelError(
            f"{model_class.__name__} does not support Transformers' attention interface, which this version needs; "
            "use another model"
        )
    return model_class


def _dtype(name: str, model_config: "PretrainedConfig") -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    dtype = getattr(model_config, "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _load_whole(
    model_class: type["PreTrainedModel"], model_config: "PretrainedConfig", config: ShardConfig, dtype: torch.dtype
) -> nn.Module:
    from safetensors import SafetensorError
    from transformers.utils import logging

    model: nn.Module
    info: dict[str, Any]
    from_pretrained: Any = model_class.from_pretrained
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what Transformers has to report, `info` says too
    try:
        model, info = from_pretrained(
            config.model_path,
            config=model_config,
            dtype=dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
        )
    except SafetensorError as error:
        raise ModelError(f"the weights in {config.model_path} are damaged ({error}); download them again") from None
    except FileNotFoundError as error:
        raise ModelError(f"{_first_line(error)}; the folder is incomplete, download the model again") from None
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise ModelError(f"{config.model_path} cannot be loaded: {_first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["mismatched_keys"]:
        shapes = [f"{name} is {list(shape)}, not {list(wanted)}" for name, shape, wanted in info["mismatched_keys"]]
        raise ModelError(
            f"weights and config.json in {config.model_path} disagree in shape: {_some(shapes)}; they are not of one "
            "model, download it again"
        )
    if info["missing_keys"]:
        raise ModelError(
            f"the weights in {config.model_path} lack {_some(info['missing_keys'])}; the folder is incomplete, "
            "download the model again"
        )
    if info["unexpected_keys"]:
        logger.warning(f"the weights have tensors that the model does not use: {_some(info['unexpected_keys'])}")
    return model


@torch.inference_mode()
def _probe(
    model: nn.Module, model_config: "PretrainedConfig", keeps_logits: bool, device: torch.device
) -> tuple[dict[int, LayerGeometry], int]:
    """Runs one token, to see what every layer writes to the cache, and the size of the logits."""
    probe = Probe()
    arguments: dict[str, Any] = (
        {"logits_to_keep": torch.zeros(1, dtype=torch.int64, device=device)} if keeps_logits else {}
    )
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    out = model(input_ids=token, position_ids=token, use_cache=False, **arguments, **{attention.ARGUMENT: probe})
    expected = getattr(model_config.get_text_config(), "num_hidden_layers", None)
    if not probe.layers:
        raise ModelError(f"{type(model).__name__} never calls the attention function: it cannot run on the paged path")
    if expected is not None and len(probe.layers) > expected:
        raise ModelError(
            f"{type(model).__name__} attends in {len(probe.layers)} layers where its config has {expected}"
        )
    return probe.layers, int(out.logits.shape[-1])


def _use_own_layers(model: Any, dtype: torch.dtype, weight_bytes: int) -> list[str]:
    """Puts our layers in the place of the model's, on CPUs. Returns what was done."""
    from gridwork_kernels import cpu_library, rms_norm

    notes = []
    if dtype == torch.bfloat16:
        notes += _use_own_linears(model, weight_bytes)
    if cpu_library.has_avx512() and (fused := rms_norm.fuse_norms(model)):
        notes.append(f"{fused} RMS norms fused")
    return notes


def _use_own_linears(model: Any, weight_bytes: int) -> list[str]:
    from gridwork_kernels import bf16_linear, cpu_library

    notes = []
    head = model.get_output_embeddings()
    if head is not None and bf16_linear.widen_head(model, getattr(head, "local", head)):
        notes.append("logits in float32")
    if not cpu_library.has_avx512():
        return notes
    max_rows = None
    if torch.cpu._is_amx_tile_supported():
        if weight_bytes > free_cpu_bytes() * _LARGEST_SECOND_COPY:
            return [*notes, "linear layers of PyTorch: there is no memory for both forms of the weights"]
        max_rows = bf16_linear.rows_until_plain_is_faster(model)
    if max_rows == 0:
        return [*notes, "linear layers of PyTorch"]
    packed = f"{bf16_linear.pack_linears(model, max_rows)} linear layers packed for AVX-512"
    return [*notes, packed if max_rows is None else f"{packed}, for up to {max_rows} tokens a step"]


def _size(model: nn.Module) -> tuple[int, int]:
    parameters = {id(parameter): parameter for parameter in model.parameters()}.values()
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


def _eos_token_ids(model_config: "PretrainedConfig", path: Path) -> list[int]:
    """generation_config.json decides; else the model's config."""
    try:
        ids = json.loads((path / "generation_config.json").read_text()).get("eos_token_id")
    except (OSError, ValueError):
        ids = None
    if ids is None:
        ids = getattr(model_config.get_text_config(), "eos_token_id", None)
    if ids is None:
        return []
    return [int(id) for id in ids] if isinstance(ids, list) else [int(ids)]


def _max_context_tokens(model_config: "PretrainedConfig") -> int:
    return int(getattr(model_config.get_text_config(), "max_position_embeddings", None) or 0)


def _some(keys: Any) -> str:
    keys = [str(key) for key in sorted(keys, key=str)]
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _first_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return text if len(text) < 600 else text[:600] + " …"
