"""From the hidden states of a sequence's tokens to one vector, as sentence-transformers' files say."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.errors import ModelError

# The ways to pool, by what sentence-transformers calls them: flags in older files, names in newer ones.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODES = tuple(_FLAGS.values())


@dataclass(frozen=True)
class Pooling:
    """How vectors are made."""

    modes: tuple[str, ...]
    """Ways to pool, of `_MODES`; the vectors of several are put one behind the other."""
    layers: list[nn.Module] = field(default_factory=list)
    """What is applied to the pooled vector."""
    normalizes: bool = True
    """Whether the vectors are meant to have length 1; it is not done here."""
    max_input_tokens: int | None = None
    """Longest sequence that the files allow."""

    def pool(self, hidden: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
        """hidden: `[num_tokens, size]`. Returns `[num_sequences, embedding_size]`, float32."""
        hidden = hidden.float()
        vectors = torch.cat([_pool(mode, hidden, batch) for mode in self.modes], dim=-1)
        for layer in self.layers:
            vectors = layer(vectors)
        return vectors


def _pool(mode: str, hidden: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
    lengths = torch.tensor(batch.lengths, device=hidden.device)
    starts = torch.tensor(batch.starts, device=hidden.device)
    if mode == "cls":
        return hidden[starts]
    if mode == "lasttoken":
        return hidden[starts + lengths - 1]
    owners = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
    zeros = hidden.new_zeros(len(lengths), hidden.shape[1])
    if mode == "max":
        return zeros.scatter_reduce(0, owners[:, None].expand_as(hidden), hidden, "amax", include_self=False)
    if mode == "weightedmean":
        weights = (batch.positions() + 1).float()
        totals = weights.new_zeros(len(lengths)).index_add(0, owners, weights)
        return zeros.index_add(0, owners, hidden * weights[:, None]) / totals[:, None]
    divisor = lengths.float().sqrt() if mode == "mean_sqrt_len_tokens" else lengths.float()
    return zeros.index_add(0, owners, hidden) / divisor[:, None]


def read(folder: Path, is_causal: bool, device: torch.device) -> Pooling:
    """What the folder's files say; without any, the mean of the tokens, or of a causal model the last one. Raises
    ModelError for what cannot be done."""
    default = Pooling(("lasttoken",) if is_causal else ("mean",))
    modules = _json(folder / "modules.json")
    if modules is None:
        config = _json(folder / "1_Pooling" / "config.json")
        return default if config is None else Pooling(_modes(config, folder / "1_Pooling" / "config.json"))
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{folder / 'modules.json'} is not a list of modules; download it again")
    modes, layers, normalizes = None, [], False
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        path = folder / str(module.get("path", ""))
        if kind == "Transformer":
            if path != folder:
                raise ModelError(f"{folder / 'modules.json'} has the model in {path}; give --model-id that folder")
        elif kind == "Pooling":
            modes = _modes(_json(path / "config.json") or {}, path / "config.json")
        elif kind == "Dense" and not normalizes:
            layers.append(_dense(path).to(device))
        elif kind == "Normalize":
            normalizes = True
        elif kind != "Dropout":
            raise ModelError(
                f"{folder / 'modules.json'} has the module `{module.get('type')}`, which this version does not run; it "
                "runs Transformer, Pooling, Dense and Normalize"
            )
    limit = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    return Pooling(modes or default.modes, layers, normalizes, limit if isinstance(limit, int) else None)


def _modes(config: Any, path: Path) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    if named is None:
        modes = tuple(mode for flag, mode in _FLAGS.items() if config.get(flag))
    else:
        modes = tuple(str(mode) for mode in ([named] if isinstance(named, str) else named))
    unknown = [mode for mode in modes if mode not in _MODES]
    if unknown or not modes:
        what = f"the pooling `{unknown[0]}`" if unknown else "no pooling"
        raise ModelError(f"{path} has {what}; this version pools by {', '.join(_MODES)}")
    return modes


def _dense(path: Path) -> nn.Module:
    """A linear layer and its activation."""
    from safetensors.torch import load_file

    config = _json(path / "config.json") or {}
    name = str(config.get("activation_function", "torch.nn.modules.linear.Identity")).rsplit(".", 1)[-1]
    activation = getattr(nn, name, None)
    if not (isinstance(activation, type) and issubclass(activation, nn.Module)):
        raise ModelError(f"{path / 'config.json'} has the activation `{name}`, which PyTorch does not have")
    try:
        weights = {key.removeprefix("linear."): tensor for key, tensor in load_file(path / "model.safetensors").items()}
        layer = nn.Linear(config["in_features"], config["out_features"], bias=bool(config.get("bias", True)))
        layer.load_state_dict(weights)
        return nn.Sequential(layer, activation()).float().eval().requires_grad_(False)
    except (OSError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"the layer in {path} cannot be loaded ({error}); it needs config.json and model.safetensors"
        ) from error


def _json(path: Path) -> Any:
    """Content of a file, None when it is not there."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); download it again") from None
