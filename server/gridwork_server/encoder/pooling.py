"""Pools the hidden states of a sequence's tokens into one vector, as the files of sentence-transformers describe."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.errors import ModelError

# Pooling modes by sentence-transformers' flags, which older files have. Newer files have the names.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODES = tuple(_FLAGS.values())

SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""Names of the Transformer module's file. The first one that exists counts."""


@dataclass(frozen=True)
class Pooling:
    """The steps from hidden states to vectors."""

    modes: tuple[str, ...]
    """Pooling modes, of `_MODES`. Vectors of several modes are concatenated."""
    layers: list[nn.Module] = field(default_factory=list)
    """Layers that are applied to the pooled vector."""
    normalizes: bool = True
    """True if the vectors are meant to have length 1. The router normalizes them."""
    max_input_tokens: int | None = None
    """Maximum length of a sequence by the files."""
    excludes_prompt: bool = False
    """True if pooling skips a prompt's tokens."""

    def pool(
        self, hidden: torch.Tensor, batch: SequenceBatch, prompt_lengths: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Makes vectors. hidden: `[num_tokens, size]`; prompt_lengths: number of first tokens of each sequence that
        belong to a prompt, with `excludes_prompt`. Returns `[num_sequences, embedding_size]`, float32."""
        hidden = hidden.float()
        counted = _counted(batch, prompt_lengths) if prompt_lengths and self.excludes_prompt else None
        vectors = torch.cat([_pool(mode, hidden, batch, counted) for mode in self.modes], dim=-1)
        for layer in self.layers:
            vectors = layer(vectors)
        return vectors


def _counted(batch: SequenceBatch, prompt_lengths: Sequence[int]) -> torch.Tensor:
    """bool `[num_tokens]`: False for tokens of prompts."""
    device = batch.token_ids.device
    lengths = torch.tensor(batch.lengths, device=device)
    prompts = torch.tensor(list(prompt_lengths), device=device)
    return batch.positions() >= prompts.repeat_interleave(lengths)


def _pool(mode: str, hidden: torch.Tensor, batch: SequenceBatch, counted: torch.Tensor | None) -> torch.Tensor:
    lengths = torch.tensor(batch.lengths, device=hidden.device)
    starts = torch.tensor(batch.starts, device=hidden.device)
    if mode == "cls":
        return hidden[starts]
    owners = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
    zeros = hidden.new_zeros(len(lengths), hidden.shape[1])
    weights = hidden.new_ones(len(hidden)) if counted is None else counted.float()
    totals = weights.new_zeros(len(lengths)).index_add(0, owners, weights)
    if mode == "lasttoken":
        # A sequence that is all prompt gets the zero vector.
        return hidden[starts + lengths - 1] * (totals > 0).float()[:, None]
    if mode == "max":
        left = hidden if counted is None else hidden.masked_fill(~counted[:, None], -1e9)
        return zeros.scatter_reduce(0, owners[:, None].expand_as(hidden), left, "amax", include_self=False)
    if mode == "weightedmean":
        weights = weights * (batch.positions() + 1).float()
        totals = weights.new_zeros(len(lengths)).index_add(0, owners, weights)
    divisor = totals.sqrt() if mode == "mean_sqrt_len_tokens" else totals
    return zeros.index_add(0, owners, hidden * weights[:, None]) / divisor.clamp_min(1e-9)[:, None]


def read(folder: Path, is_causal: bool, device: torch.device) -> Pooling:
    """Reads the pooling from the folder's files. Without files it is the mean of all tokens, or a causal model's last
    token. Raises ModelError for unknown modules and modes."""
    default = Pooling(("lasttoken",) if is_causal else ("mean",))
    modules = _json(folder / "modules.json")
    if modules is None:
        config = _json(folder / "1_Pooling" / "config.json")
        if config is None:
            return default
        modes = _modes(config, folder / "1_Pooling" / "config.json")
        return Pooling(modes, excludes_prompt=config.get("include_prompt") is False)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{folder / 'modules.json'} is not a list of modules; download it again")
    found: tuple[str, ...] | None = None
    layers: list[nn.Module] = []
    includes_prompt = True
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        path = folder / str(module.get("path", ""))
        if kind == "Transformer":
            if path != folder:
                raise ModelError(f"{folder / 'modules.json'} has the model in {path}; give --model-id that folder")
        elif kind == "Pooling" and found is None:
            config = _json(path / "config.json") or {}
            found = _modes(config, path / "config.json")
            includes_prompt = config.get("include_prompt") is not False
        elif kind in _LAYERS:
            layers.append(_LAYERS[kind](path).to(device))
        elif kind != "Dropout":
            raise ModelError(
                f"{folder / 'modules.json'} has the module `{module.get('type')}`, which this version does not run; it "
                f"runs Transformer, Pooling and, after it, {', '.join(_LAYERS)}"
            )
    # A normalization at the end is left to the router.
    normalizes = bool(layers) and isinstance(layers[-1], Normalize)
    return Pooling(
        found or default.modes,
        layers[:-1] if normalizes else layers,
        normalizes,
        _max_seq_length(folder),
        excludes_prompt=not includes_prompt,
    )


def _max_seq_length(folder: Path) -> int | None:
    """`max_seq_length` in the Transformer module's file, which older versions named after the model's type."""
    for name in SENTENCE_CONFIGS:
        if (config := _json(folder / name)) is not None:
            limit = config.get("max_seq_length")
            return limit if isinstance(limit, int) and limit > 0 else None
    return None


def _modes(config: Any, path: Path) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is None:
        # The mean is on unless the file says otherwise.
        modes = tuple(mode for flag, mode in _FLAGS.items() if config.get(flag, mode == "mean"))
    else:
        modes = tuple(str(mode).lower() for mode in ([named] if isinstance(named, str) else named))
    unknown = [mode for mode in modes if mode not in _MODES]
    if unknown or not modes:
        what = f"the pooling `{unknown[0]}`" if unknown else "no pooling"
        raise ModelError(f"{path} has {what}; this version pools by {', '.join(_MODES)}")
    return modes


class Normalize(nn.Module):
    """Scales vectors to length 1."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(vectors, p=2, dim=1)


def _dense(path: Path) -> nn.Module:
    """Loads a linear layer and its activation."""
    config = _json(path / "config.json") or {}
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ModelError(
                f"{path / 'config.json'} has {key}: {config[key]}; layers are applied to the pooled vector alone"
            )
    name = str(config.get("activation_function", "torch.nn.modules.linear.Identity")).rsplit(".", 1)[-1]
    activation = getattr(nn, name, None)
    if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
        raise ModelError(f"{path / 'config.json'} has the activation `{name}`, which PyTorch does not have")
    with _loading(path):
        layer = nn.Linear(config["in_features"], config["out_features"], bias=bool(config.get("bias", True)))
        layer.load_state_dict(_weights(path, "linear."))
        return nn.Sequential(layer, activation()).float().eval().requires_grad_(False)


def _layer_norm(path: Path) -> nn.Module:
    config = _json(path / "config.json") or {}
    with _loading(path):
        layer = nn.LayerNorm(config["dimension"])
        layer.load_state_dict(_weights(path, "norm."))
        return layer.float().eval().requires_grad_(False)


_LAYERS: dict[str, Callable[[Path], nn.Module]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": lambda path: Normalize(),
}
"""Loaders of the modules that are applied to the pooled vector."""


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    """Turns any error of a layer's files into a ModelError."""
    try:
        yield
    except (OSError, KeyError, TypeError, RuntimeError, ValueError) as error:
        pickled = (path / "pytorch_model.bin").is_file() and not (path / "model.safetensors").is_file()
        raise ModelError(
            f"the layer in {path} cannot be loaded ({error}); it needs config.json and model.safetensors"
            + (", and has a pickle file: save it anew with sentence-transformers 2.3 or later" if pickled else "")
        ) from error


def _weights(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {key.removeprefix(prefix): tensor for key, tensor in load_file(path / "model.safetensors").items()}


def _json(path: Path) -> Any:
    """Content of a file; None when it does not exist."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); download it again") from None
