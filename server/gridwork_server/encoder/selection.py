"""Selects the path that a model runs on: the fastest one that gives the results of plain `forward()`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from loguru import logger

from gridwork_server.encoder import attention, positions
from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.encoder.paths import (
    EncoderPath,
    FlatPath,
    PaddedPath,
    SequenceLengths,
    SinglePath,
    use_attention,
)
from gridwork_server.errors import ModelError
from gridwork_server.lengths import call_lengths
from gridwork_server.model.task import Task
from gridwork_server.startup import deferred_imports
from gridwork_server.text import one_line

# Paths of encoders, by the name of the corresponding path of generators in `--model-impl`.
WISHES = {"paged": "flat", "batched": "padded", "solo": "single"}

_LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Maximum relative difference of L2 norms that another order of rounding may cause, by dtype."""

_LONGEST_CHECK_TOKENS = 1024


@dataclass(frozen=True)
class Selection:
    """The selected path."""

    path: EncoderPath
    reason: str
    """Reason why no faster path was selected; empty for the fastest."""
    attention: str
    """Attention implementation, for people to read."""
    positions: positions.Positions
    is_causal: bool
    """True if a token's hidden state does not depend on later tokens."""


class _Refused(Exception):
    """A path cannot be used. The message says why."""


@torch.inference_mode()
def select(model: Any, task: Task, wish: str = "auto", attention_wish: str = "auto") -> Selection:
    """Tries the paths in turn. wish: `auto`, or the name of the only path to try; attention_wish: `auto`, `sdpa` or
    `reference`. Raises ModelError when the path in `wish` cannot be used."""
    attention.register()
    name = type(model).__name__
    plain = _plain_attention(model, attention_wish)
    use_attention(model, plain)
    vocab_size = num_tokens(model)
    device = next(model.parameters()).device
    base = getattr(model, "base_model", model)
    has_types = (getattr(model.config, "type_vocab_size", None) or 0) > 1
    single = SinglePath(model, has_types, plain)
    try:
        found = positions.find(base, vocab_size, device)
    except Exception as error:
        raise ModelError(
            f"{name} cannot run a sequence of {positions.NUM_WATCHED} tokens: {one_line(error, typed=False)}"
        ) from error
    check = _Check(single, task, vocab_size, found.capacity, has_types, device, next(model.parameters()).dtype)
    lengths = check.find_lengths(model, found.offset)

    def flat() -> EncoderPath:
        path = FlatPath(model, has_types, found, attention_wish == "reference", lengths)
        check.compare_flat(path)
        return path

    def padded() -> EncoderPath:
        path = PaddedPath(model, has_types, plain, _padding_token(model), lengths)
        check.compare(path)
        return path

    candidates: dict[str, tuple[Callable[[], EncoderPath], str]] = {
        "flat": (flat, "reference" if attention_wish == "reference" else "sdpa"),
        "padded": (padded, plain),
        "single": (lambda: single, plain),
    }
    if wish != "auto":
        candidates = {wish: candidates[wish]}
    refusals = []
    for candidate, (make, implementation) in candidates.items():
        try:
            try:
                path = make()
            except _Refused:
                raise
            except Exception:
                if not deferred_imports.give_up():
                    raise
                path = make()  # with all of PyTorch imported
        except Exception as error:
            refusals.append(f"{candidate}: {one_line(error, typed=False)}")
            logger.warning(f"{name} does not run on the {candidate} path: {one_line(error, typed=False)}")
            continue
        return Selection(path, "; ".join(refusals), implementation, found, check.is_causal())
    raise ModelError(f"{name} cannot run as --model-impl asks, {'; '.join(refusals)}; use --model-impl auto")


class _Check:
    """Compares a path with plain `forward()` on a few sequences."""

    def __init__(
        self,
        plain: SinglePath,
        task: Task,
        vocab_size: int,
        capacity: int | None,
        has_types: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._plain = plain
        self._task = task
        self._vocab_size = vocab_size
        self._capacity = min(capacity or _LONGEST_CHECK_TOKENS, _LONGEST_CHECK_TOKENS)
        self._has_types = has_types
        self._device = device
        self._tolerance = _LARGEST_ERROR.get(dtype, 5e-2)

    def find_lengths(self, model: Any, offset: int) -> SequenceLengths | None:
        """Finds modules that depend on the length of a sequence, by a run of plain `forward()`. offset: number of the
        first position."""
        num_tokens = min(7, self._capacity)
        try:
            with call_lengths.watch(model, num_tokens) as found:
                self._outputs(self._plain, self._batch([num_tokens]))
        except Exception as error:  # the comparison with the paths reports it better
            logger.debug(f"plain forward() fails: {one_line(error, typed=False)}")
            return None
        return SequenceLengths(found[0], offset) if found else None

    def compare_flat(self, path: FlatPath) -> None:
        """Compares a flat path with plain `forward()`. Raises _Refused, or the path's own error."""
        try:
            self.compare(path)
        except ValueError:
            # Heads that look for padding refuse several sequences when the config has no padding token.
            if self._task not in (Task.CLASSIFY, Task.RERANK) or not path.heads_together:
                raise
            path.heads_together = False
            self.compare(path)
        # Sequences must be longer than a window to show whether it is right, and longer than the length at which rotary
        # frequencies change.
        limits = path.windows | ({path.lengths.border} if path.lengths else set())
        longest = max((w for w in limits if w < self._capacity), default=0)
        if longest:
            self._compare(path, [longest + 7, 2, longest + 3])

    def compare(self, path: EncoderPath) -> None:
        """Compares any path with plain `forward()`. Raises _Refused."""
        self._compare(path, [5, 5, 1, 9, 3])

    def _compare(self, path: EncoderPath, lengths: list[int]) -> None:
        batch = self._batch([max(1, min(length, self._capacity)) for length in lengths])
        expected, got = self._outputs(self._plain, batch).float(), self._outputs(path, batch).float()
        error = float((got - expected).norm() / expected.norm().clamp_min(1e-12))
        if not error <= self._tolerance:
            raise _Refused(f"its results differ from those of plain forward() by {error:.1e}")

    def is_causal(self) -> bool:
        """Returns whether the hidden states of a sequence's first tokens do not depend on its last one."""
        if self._task != Task.EMBED:
            return False
        batch = self._batch([min(6, self._capacity)])
        changed = batch.token_ids.clone()
        changed[-1] = (changed[-1] + 1) % self._vocab_size
        before = self._plain.hidden_states(batch)[:-1]
        after = self._plain.hidden_states(SequenceBatch(changed, None, batch.lengths))[:-1]
        return bool(len(before)) and torch.equal(before, after)

    def _outputs(self, path: EncoderPath, batch: SequenceBatch) -> torch.Tensor:
        if self._task == Task.EMBED:
            return path.hidden_states(batch)
        if self._task == Task.FILL_MASK:
            return path.token_logits(batch, torch.arange(0, len(batch.token_ids), 2, device=self._device))
        return path.label_logits(batch)

    def _batch(self, lengths: list[int]) -> SequenceBatch:
        generator = np.random.default_rng(0)
        # Ids near 0 are often special.
        first = min(self._vocab_size // 2, 300)
        token_ids = torch.from_numpy(generator.integers(first, self._vocab_size, sum(lengths))).to(self._device)
        types = None
        if self._has_types and self._task != Task.EMBED:
            types = torch.cat([torch.arange(length) >= (length + 1) // 2 for length in lengths]).long().to(self._device)
        return SequenceBatch(token_ids, types, tuple(lengths))


def num_tokens(model: Any) -> int:
    """Size of the model's vocabulary. Raises ModelError when it has none."""
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        size = getattr(model.config.get_text_config(), "vocab_size", None)
        if not isinstance(size, int):
            raise ModelError(f"{type(model).__name__} has no vocabulary of tokens") from None
        return size


def _plain_attention(model: Any, wish: str) -> str:
    """Name of the attention function that Transformers has chosen, or of the one by its definition."""
    chosen = model.config._attn_implementation
    return "eager" if wish == "reference" or chosen in (None, attention.NAME) else str(chosen)


def _padding_token(model: Any) -> int:
    token = getattr(model.config, "pad_token_id", None)
    return token if isinstance(token, int) and token >= 0 else 0
