"""Three ways to run an encoder: flat batches, padded batches, and one sequence at a time."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from gridwork_server.encoder import attention
from gridwork_server.encoder.attention import FlatAttention
from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.encoder.positions import Positions
from gridwork_server.errors import PathError
from gridwork_server.lengths.call_lengths import CallLengths


class EncoderPath(Protocol):
    """A way to run a model. Every method returns what plain `forward()` of each sequence by itself does."""

    name: str
    """Name in `model_impl` of the contract."""

    def hidden_states(self, batch: SequenceBatch) -> torch.Tensor:
        """Last hidden states of a model without a head. Returns `[num_tokens, size]`."""

    def label_logits(self, batch: SequenceBatch) -> torch.Tensor:
        """Logits of a model with a head for sequences. Returns `[num_sequences, num_labels]`."""

    def token_logits(self, batch: SequenceBatch, positions: torch.Tensor) -> torch.Tensor:
        """Logits of a model with a head for tokens. positions: indices into the batch, `[num_positions]`, int64.
        Returns `[num_positions, vocab_size]`."""


class Arguments:
    """Keyword arguments that a model's `forward()` takes, and their values."""

    def __init__(self, model: nn.Module, has_types: bool) -> None:
        """has_types: whether the model distinguishes types of tokens."""
        self._known = inspect.signature(model.forward).parameters
        self._has_types = has_types

    def of(
        self,
        token_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        token_types: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Arguments with these values, each `[batch, length]`, without those that the model does not take."""
        found: dict[str, Any] = {"input_ids": token_ids}
        if mask is not None and "attention_mask" in self._known:
            found["attention_mask"] = mask
        if token_types is not None and self._has_types and "token_type_ids" in self._known:
            found["token_type_ids"] = token_types
        if position_ids is not None and "position_ids" in self._known:
            found["position_ids"] = position_ids
        if "use_cache" in self._known:
            found["use_cache"] = False
        return found


def hidden_of(output: Any) -> torch.Tensor:
    """Last hidden states in the output of a model's `forward()`."""
    hidden = getattr(output, "last_hidden_state", None)
    return output[0] if hidden is None else hidden


class SequenceLengths:
    """A model's modules that depend on the length of a sequence, such as some rotary embeddings."""

    def __init__(self, modules: CallLengths, offset: int) -> None:
        """offset: number of the first position."""
        self._modules, self._offset = modules, offset
        self.border = modules.rule.border
        """Length up to which the modules do not depend on it."""

    def of_tokens(self, batch: SequenceBatch) -> AbstractContextManager[None]:
        """Sets the lengths for all sequences in one row."""
        return self._modules.of(np.repeat(self._ends(batch), batch.lengths))

    def of_rows(self, batch: SequenceBatch) -> AbstractContextManager[None]:
        """Sets the lengths for a row for each sequence, padded to the longest."""
        return self._modules.of(np.repeat(self._ends(batch)[:, None], max(batch.lengths), axis=1))

    def _ends(self, batch: SequenceBatch) -> np.ndarray:
        return np.array(batch.lengths, dtype=np.int64) + self._offset


class SinglePath:
    """Plain `forward()` of one sequence after the other. The other paths are compared with this one."""

    name = "single"

    def __init__(self, model: nn.Module, has_types: bool, implementation: str) -> None:
        """implementation: name of an attention function in Transformers' registry."""
        self._model = model
        self._arguments = Arguments(model, has_types)
        self._implementation = implementation

    def hidden_states(self, batch: SequenceBatch) -> torch.Tensor:
        return torch.cat([hidden_of(out)[0] for out in self._outputs(batch)])

    def label_logits(self, batch: SequenceBatch) -> torch.Tensor:
        return torch.cat([out.logits for out in self._outputs(batch)])

    def token_logits(self, batch: SequenceBatch, positions: torch.Tensor) -> torch.Tensor:
        return torch.cat([out.logits[0] for out in self._outputs(batch)])[positions]

    def _outputs(self, batch: SequenceBatch) -> Iterator[Any]:
        use_attention(self._model, self._implementation)
        for index in range(len(batch.lengths)):
            one = batch.one(index)
            token_ids = one.token_ids[None]
            types = None if one.token_types is None else one.token_types[None]
            yield self._model(**self._arguments.of(token_ids, torch.ones_like(token_ids), types))


class PaddedPath:
    """Plain `forward()` of sequences that are padded to one length, with a mask."""

    name = "padded"

    def __init__(
        self,
        model: nn.Module,
        has_types: bool,
        implementation: str,
        padding_token: int,
        lengths: SequenceLengths | None = None,
    ) -> None:
        self._model = model
        self._lengths = lengths
        self._arguments = Arguments(model, has_types)
        self._implementation = implementation
        self._padding_token = padding_token

    def hidden_states(self, batch: SequenceBatch) -> torch.Tensor:
        out, mask = self._run(batch)
        return hidden_of(out)[mask]

    def label_logits(self, batch: SequenceBatch) -> torch.Tensor:
        return self._run(batch)[0].logits

    def token_logits(self, batch: SequenceBatch, positions: torch.Tensor) -> torch.Tensor:
        out, mask = self._run(batch)
        rows = mask.flatten().nonzero().flatten()[positions]
        return out.logits.flatten(0, 1)[rows]

    def _run(self, batch: SequenceBatch) -> tuple[Any, torch.Tensor]:
        use_attention(self._model, self._implementation)
        device = batch.token_ids.device
        lengths = torch.tensor(batch.lengths, device=device)
        mask = torch.arange(max(batch.lengths), device=device)[None] < lengths[:, None]
        token_ids = torch.full(mask.shape, self._padding_token, dtype=torch.int64, device=device)
        token_ids[mask] = batch.token_ids
        types = None
        if batch.token_types is not None:
            types = torch.zeros_like(token_ids)
            types[mask] = batch.token_types
        with self._lengths.of_rows(batch) if self._lengths else nullcontext():
            return self._model(**self._arguments.of(token_ids, mask.long(), types)), mask


class FlatPath:
    """All sequences in one row, without padding; attention keeps them apart.

    A head runs apart from the model under it, on that model's hidden states in the shape that the head expects: for
    heads of sequences `[count, length, size]`, with whole sequences of equal length together; for heads of tokens, only
    the rows that are wanted.
    """

    name = "flat"

    def __init__(
        self,
        model: nn.Module,
        has_types: bool,
        positions: Positions,
        reference: bool = False,
        lengths: SequenceLengths | None = None,
    ) -> None:
        """positions: those of the model under the head; reference: compute attention by its definition. Raises
        PathError."""
        self._model = model
        self.lengths = lengths
        self._base = getattr(model, "base_model", model)
        self._head_arguments = Arguments(model, has_types)
        self._arguments = Arguments(self._base, has_types)
        self._offset = positions.offset
        self._reference = reference
        self._is_causal = getattr(model.config, "is_causal", True) is not False
        self.heads_together = True
        """True if the head takes several sequences at once."""
        self.windows: set[int] = set()
        """Sliding windows of layers that have run."""
        if not getattr(model, "_supports_attention_backend", False):
            raise PathError(f"{type(model).__name__} does not support Transformers' attention interface")
        if positions.capacity is not None and not positions.is_argument:
            raise PathError(f"{type(self._base).__name__} numbers positions by itself, for one sequence")
        if "input_ids" not in inspect.signature(self._base.forward).parameters:
            raise PathError(f"{type(self._base).__name__} does not take token ids")

    def hidden_states(self, batch: SequenceBatch) -> torch.Tensor:
        return hidden_of(self._run(batch))[0]

    def label_logits(self, batch: SequenceBatch) -> torch.Tensor:
        out = self._run(batch)
        logits = []
        for run in batch.runs():
            hidden = hidden_of(out)[0, run.tokens].unflatten(0, (run.count, run.length))
            token_ids = batch.token_ids[run.tokens].view(run.count, run.length)
            step = run.count if self.heads_together else 1
            for first in range(0, run.count, step):
                part = slice(first, first + step)
                logits.append(self._head(out, hidden[part], token_ids[part]))
        return torch.cat(logits)

    def token_logits(self, batch: SequenceBatch, positions: torch.Tensor) -> torch.Tensor:
        out = self._run(batch)
        return self._head(out, hidden_of(out)[:, positions], batch.token_ids[None, positions])[0]

    def _run(self, batch: SequenceBatch) -> Any:
        use_attention(self._model, attention.NAME)
        flat = FlatAttention.of(batch, reference=self._reference, is_causal_by_config=self._is_causal)
        types = None if batch.token_types is None else batch.token_types[None]
        positions = (batch.positions() + self._offset)[None]
        arguments = self._arguments.of(batch.token_ids[None], None, types, positions)
        with self.lengths.of_tokens(batch) if self.lengths else nullcontext():
            out = self._base(**arguments, **{attention.ARGUMENT: flat})
        hidden = hidden_of(out)
        if hidden.shape[:2] != (1, len(batch.token_ids)):
            raise PathError(f"{type(self._base).__name__} does not return a hidden state for each token")
        self.windows |= flat.windows
        return out

    def _head(self, out: Any, hidden: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Runs the head alone. out: output of the model under it; hidden: `[batch, length, size]`; token_ids:
        `[batch, length]`. Raises PathError."""
        if self._base is self._model or "last_hidden_state" not in getattr(out, "keys", tuple)():
            raise PathError(f"the head of {type(self._model).__name__} cannot be run apart from what is under it")
        values = {"last_hidden_state": hidden}
        if getattr(out, "pooler_output", None) is not None:
            pooler: Any = self._base.pooler
            values["pooler_output"] = pooler(hidden)
        arguments = self._head_arguments.of(token_ids, torch.ones_like(token_ids))
        with _answering(self._base, type(out)(**values)):
            return self._model(**arguments).logits


@contextmanager
def _answering(module: nn.Module, output: Any) -> Iterator[None]:
    """Makes the module return an output instead of running."""
    module.forward = lambda *_arguments, **_keywords: output
    try:
        yield
    finally:
        del module.forward


def use_attention(model: Any, implementation: str) -> None:
    """Makes the model's layers call another attention function."""
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)
