"""Fits an adapter's tensors and its base model to each other: added tokens, and weights that modules share."""

from typing import Any

import torch
from torch import nn

_SAVED = ".modules_to_save."


def without_second_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Removes second names: where PEFT saved the embeddings too, modules saved whole have two; it reads the shorter."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        short = name.replace(_SAVED, ".")
        if short == name or short not in tensors:
            named[short] = tensor
    return named


def vocabulary_rows(model: Any, tensors: dict[str, torch.Tensor], trained_tokens: Any) -> int | None:
    """Number of tokens that the adapter was made for, by its tensors of the embeddings or the head; None without such.

    trained_tokens: `trainable_token_indices` of PEFT's config. An adapter that saved only these rows has at least as
    many tokens as they need.
    """
    names = [
        name
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        for name in _names(model, module)
    ]
    rows = []
    for key, tensor in tensors.items():
        if not any(f".{name}." in f".{key}" for name in names):
            continue
        if key.endswith("lora_embedding_A"):
            rows.append(int(tensor.shape[1]))
        elif tensor.dim() == 2 and key.endswith(".weight") and ".lora_" not in key:
            rows.append(int(tensor.shape[0]))
    if rows:
        return max(rows)
    lists = trained_tokens.values() if isinstance(trained_tokens, dict) else [trained_tokens or []]
    highest = max((int(token) for tokens in lists for token in tokens), default=-1)
    present = int(model.get_input_embeddings().weight.shape[0])
    return highest + 1 if highest >= present else None


def _names(model: nn.Module, module: nn.Module | None) -> list[str]:
    return [name for name, other in model.named_modules() if other is module and module is not None]


def copy_shared_weights(model: nn.Module) -> bool:
    """Copies weights that several modules share, so that a merge into one module does not change another. Returns
    whether there were any."""
    seen: set[int] = set()
    shared = False
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            continue
        owner, _, leaf = name.rpartition(".")
        own = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(owner), leaf, own)
        seen.add(id(own))
        shared = True
    return shared


def is_tied(model: Any) -> bool:
    """Tells whether embeddings and head are one tensor."""
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    return source is not None and head is not None and getattr(head, "weight", None) is source.weight


def update_tying(model: Any, was_tied: bool) -> None:
    """Ties embeddings and head after a merge if they are still equal, and corrects `tie_word_embeddings` in the config.

    was_tied: whether they were tied before the merge.
    """
    if not was_tied:
        return
    source, head = model.get_input_embeddings(), model.get_output_embeddings()
    same = source.weight.shape == head.weight.shape and bool(torch.equal(source.weight, head.weight))
    if same:
        head.weight = source.weight
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = same


def is_copy(name: str, tensors: dict[str, torch.Tensor]) -> bool:
    """Tells whether a tensor repeats another one: trained tokens are saved twice when the head is tied to the
    embeddings."""
    kind = ".token_adapter."
    tensor = tensors.get(name)
    if tensor is None or kind not in name:
        return False
    others = (other for key, other in tensors.items() if key != name and key.endswith(name[name.index(kind) :]))
    return any(other.shape == tensor.shape and bool(torch.equal(other, tensor)) for other in others)
