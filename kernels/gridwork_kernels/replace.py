"""Replacement of modules in a model."""

from torch import nn


def replace_modules(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> None:
    """Replaces modules everywhere in a model, in place. A module that is used in several places stays shared."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() omits shared ones
            if child in replaced:
                setattr(parent, name, replaced[child])
