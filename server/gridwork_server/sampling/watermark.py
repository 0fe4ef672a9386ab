"""Watermarks: lists of favoured tokens (J. Kirchenbauer et al., "A Watermark for Large Language Models", 2023).

Each token chooses the favoured tokens behind it ("lefthash", one token of context): a generator of random numbers that
is seeded with it and a key shuffles the vocabulary, and the first tokens of that order are favoured. Transformers'
`WatermarkDetector` draws the same lists on a CPU.
"""

import importlib
from collections import OrderedDict

import torch

from gridwork_kernels.device_copies import to_device

_MAX_LISTS = 256
"""Maximum number of lists that are kept: each has a byte for every token of the vocabulary."""


class FavouredTokens:
    """Lists of favoured tokens, the ones used last."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._lists: OrderedDict[tuple[int, int, int], torch.Tensor] = OrderedDict()
        self._random: torch.Generator | None = None

    def after(self, token: int, share: float, key: int) -> torch.Tensor:
        """bool `[vocab]`, on the device: the tokens that are favoured behind this one."""
        size = int(self._vocab_size * share)
        name = (token, size, key)
        found = self._lists.get(name)
        if found is not None:
            self._lists.move_to_end(name)
            return found
        if self._random is None:
            # A generator needs this module, which a start does not import.
            importlib.import_module("torch._prims.rng_prims")
            self._random = torch.Generator()
        self._random.manual_seed(key * token % (2**64 - 1))
        favoured = torch.zeros(self._vocab_size, dtype=torch.bool)
        favoured[torch.randperm(self._vocab_size, generator=self._random)[:size]] = True
        self._lists[name] = made = to_device(favoured, self._device)
        if len(self._lists) > _MAX_LISTS:
            self._lists.popitem(last=False)
        return made
