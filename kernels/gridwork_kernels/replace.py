"""Puts modules in the place of others."""

from torch import nn


def replace_modules(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> None:
    """Replaces modules wherever they are in a model, in place. A module that stands in several places stays shared."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out shared ones
            if child in replaced:
                setattr(parent, name, replaced[child])
