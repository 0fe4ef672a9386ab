"""Loads an encoder of any architecture and selects how to run it."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from loguru import logger

from gridwork_server import logs
from gridwork_server.checkpoint import quantized_checkpoint
from gridwork_server.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from gridwork_server.config import ShardConfig
from gridwork_server.encoder import label_score, pooling, selection
from gridwork_server.encoder.label_score import LabelScore
from gridwork_server.encoder.pooling import Pooling
from gridwork_server.encoder.selection import Selection
from gridwork_server.errors import ModelError
from gridwork_server.model import code, dequantizing, loading
from gridwork_server.model.context_length import context_tokens
from gridwork_server.model.load_errors import check_shapes, load_errors
from gridwork_server.model.task import Task
from gridwork_server.text import one_line, some

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder that is ready to run, and its properties."""

    model: Any
    config: "PretrainedConfig"
    task: Task
    selection: Selection
    pooling: Pooling | None
    """None unless the task is to embed."""
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    embedding_size: int
    """Size of a vector; 0 unless the task is to embed."""
    labels: list[str]
    """Empty unless the task is to classify or to rerank."""
    label_score: LabelScore
    """Function from logits of labels to scores."""
    max_input_tokens: int
    """Maximum number of tokens of an input; 0: no limit."""
    num_parameters: int
    weight_bytes: int


def load(config: ShardConfig, content: Any, task: Task) -> LoadedEncoder:
    """Loads the model. content: of config.json. Raises ModelError."""
    if config.world_size > 1:
        raise ModelError(
            f"--task {task} runs on one shard, and {config.world_size} were asked for (or as many GPUs are visible); "
            "use --num-shard 1"
        )
    if config.attention == "cpu":
        raise ModelError(f"--attention cpu is for --task generate; with --task {task} use auto, sdpa or reference")
    logs.adopt_transformers()
    model_config = code.read_config(config, content)
    dtype = loading.dtype_of(config.dtype, model_config)
    device = torch.device("cpu") if config.device == "cpu" else torch.device("cuda", config.rank)
    quantized = quantized_checkpoint.recognize(config.model_path, content)
    for note in dequantizing.prepare(quantized, model_config, config.model_path, dtype):
        logger.info(note)
    model = _load(config, model_config, task, dtype, quantized)
    num_parameters, weight_bytes = loading.size_of(model)
    model = model.to(device).eval().requires_grad_(False)
    wish = selection.WISHES.get(config.model_impl, config.model_impl)
    selected = selection.select(model, task, wish, config.attention)
    pooled = pooling.read(config.model_path, selected.is_causal, device) if task == Task.EMBED else None
    encoder = LoadedEncoder(
        model=model,
        config=model_config,
        task=task,
        selection=selected,
        pooling=pooled,
        dtype=dtype,
        device=device,
        vocab_size=selection.num_tokens(model),
        embedding_size=0 if pooled is None else _embedding_size(selected, pooled, device, config),
        labels=_labels(model_config) if task in (Task.CLASSIFY, Task.RERANK) else [],
        label_score=label_score.find(model_config, task),
        max_input_tokens=_max_input_tokens(model_config, model, selected, pooled, config.model_path),
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
    )
    logger.info(
        f"loaded {type(model).__name__} to {task}: {num_parameters / 1e6:.1f}M parameters, "
        f"{str(dtype).removeprefix('torch.')} on {device}, {selected.path.name} batches, attention {selected.attention}"
    )
    return encoder


def _load(
    config: ShardConfig,
    model_config: "PretrainedConfig",
    task: Task,
    dtype: torch.dtype,
    quantized: QuantizedCheckpoint | None,
) -> Any:
    auto_class, arguments = _auto_class(model_config, task)
    with load_errors(config.model_path, f"to {task}", quantized):
        model, info = auto_class.from_pretrained(
            config.model_path,
            config=model_config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            trust_remote_code=config.trust_remote_code,
            **arguments,
        )
    dequantizing.check_loaded(model, info, config.model_path, quantized)
    check_shapes(info, config.model_path)
    # Embedding does not use the pooler, which a checkpoint may lack.
    missing = [key for key in info["missing_keys"] if not (task == Task.EMBED and "pooler" in key)]
    if missing:
        raise ModelError(
            f"the weights in {config.model_path} lack {some(missing)}, which --task {task} needs; the folder "
            "is incomplete, or its model was made for another task"
        )
    if info["unexpected_keys"]:
        logger.info(f"the weights have tensors that --task {task} does not use: {some(info['unexpected_keys'])}")
    return model


def _auto_class(model_config: "PretrainedConfig", task: Task) -> tuple[Any, dict[str, Any]]:
    """Class to load with, and further arguments for it."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    if task == Task.FILL_MASK:
        return transformers.AutoModelForMaskedLM, {}
    if task != Task.EMBED:
        return transformers.AutoModelForSequenceClassification, {}
    if model_config.is_encoder_decoder and type(model_config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        # Some of these classes refuse a config of an encoder-decoder.
        model_config.is_encoder_decoder = False
        return MODEL_FOR_TEXT_ENCODING_MAPPING[type(model_config)], {}
    mapping = transformers.AutoModel._model_mapping
    model_class = mapping.get(type(model_config), None)
    takes_pooling = isinstance(model_class, type) and (
        "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    )
    return transformers.AutoModel, {"add_pooling_layer": False} if takes_pooling else {}


def _labels(model_config: "PretrainedConfig") -> list[str]:
    labels = model_config.id2label or {}
    return [str(name) for _, name in sorted((int(index), name) for index, name in labels.items())]


@torch.inference_mode()
def _embedding_size(selected: Selection, pooled: Pooling, device: torch.device, config: ShardConfig) -> int:
    """Size of a vector, found by making one. Raises ModelError when the files of the folder are not compatible."""
    from gridwork_server.encoder.batch import SequenceBatch

    batch = SequenceBatch.of([[1, 2]], device)
    try:
        return int(pooled.pool(selected.path.hidden_states(batch), batch).shape[1])
    except RuntimeError as error:
        raise ModelError(
            f"the modules of {config.model_path / 'modules.json'} do not fit together: {one_line(error)}"
        ) from error


def _max_input_tokens(
    model_config: "PretrainedConfig", model: Any, selected: Selection, pooled: Pooling | None, folder: Path
) -> int:
    """The smallest limit among the model's positions and sentence-transformers' `max_seq_length`, or else the
    tokenizer's `model_max_length`."""
    limits: list[int | None] = []
    if selected.positions.capacity is not None:
        limits.append(selected.positions.capacity)
    else:
        limits.append(context_tokens(model_config, model))
    limit = pooled.max_input_tokens if pooled else None
    limits.append(limit if limit is not None else _tokenizer_limit(folder))
    return min((limit for limit in limits if limit), default=0)


def _tokenizer_limit(folder: Path) -> int | None:
    """The tokenizer's `model_max_length`; None: no limit. Tokenizers without a limit have a huge number there."""
    try:
        limit = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("model_max_length")
    except (OSError, ValueError, AttributeError):
        return None
    return int(limit) if isinstance(limit, (int, float)) and 0 < limit < 2**31 else None
