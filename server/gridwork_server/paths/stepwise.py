"""Runs models that can only be called through their own preparation for `generate()`, one sequence at a time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gridwork_server.errors import PathError
from gridwork_server.paths.base import CacheNeeds, ModelPath, wanted_tokens
from gridwork_server.paths.caller import logits_of
from gridwork_server.paths.seq2seq import start_token

if TYPE_CHECKING:
    from gridwork_server.paths.sequence_table import SequenceTable, StepBatch


@dataclass
class _State:
    """State of a sequence as `generate()` would keep it."""

    input_ids: torch.Tensor
    """Computed tokens, int64 `[1, num_tokens]`; those of the decoder when there is an encoder."""
    num_computed: int
    """Number of computed tokens of the sequence, prompt and generated."""
    arguments: dict[str, Any]


class StepwisePath(ModelPath):
    """Path that does for each sequence what `generate()` does, one token at a time."""

    name = "solo"
    recomputes_alike = True

    def __init__(self, model: Any, device: torch.device, attention_name: str, vocab_size: int) -> None:
        """Raises PathError for a model without Transformers' preparation for `generate()`."""
        for method in ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation"):
            if not hasattr(model, method):
                raise PathError(f"{type(model).__name__} has no {method}()")
        self._model, self._device = model, device
        self.attention_name = attention_name
        self.needs = CacheNeeds(0)
        self._states: dict[int, _State] = {}
        self._vocab_size = vocab_size
        self._start = start_token(model) if model.config.is_encoder_decoder else None

    def release(self, ids: np.ndarray) -> None:
        """See ModelPath."""
        for id in ids.tolist():
            self._states.pop(id, None)

    def reset(self) -> None:
        """See ModelPath."""
        self._states.clear()

    def forward(self, batch: "StepBatch", table: "SequenceTable", extra: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """See ModelPath. The prompt is computed in one piece and every later token separately, also after a preemption:
        some models give other answers when tokens are computed together. Logits within prompts are NaN, because such
        models do not give them."""
        kept = wanted_tokens(batch, extra)
        rows = []
        sampled = set(batch.last[batch.samples].tolist())
        for token in kept.tolist():
            id = int(batch.sequence_ids[batch.row[token]])
            if token in sampled:
                rows.append(self._advance(id, int(batch.positions[token]) + 1, table))
            else:
                rows.append(torch.full((self._vocab_size,), torch.nan, device=self._device))
        return (torch.stack(rows) if rows else torch.empty(0, 0)), kept

    def _advance(self, id: int, length: int, table: "SequenceTable") -> torch.Tensor:
        """Logits `[vocab_size]` after a sequence's first `length` tokens."""
        tokens = torch.from_numpy(table.token_ids[id, :length].astype(np.int64))[None].to(self._device)
        state = self._states.get(id)
        logits = None
        if state is None or state.num_computed >= length:
            num_prompt = min(length, int(table.num_prompt[id]))
            prompt = tokens[:, :num_prompt]
            if self._start is None:
                state = _State(prompt, num_prompt, self._first_arguments(prompt))
            else:
                start = torch.full_like(tokens[:, :1], self._start)
                state = _State(start, num_prompt, self._encoded_arguments(prompt))
            self._states[id] = state
            logits = self._call(state, first=True)
        while state.num_computed < length:
            state.input_ids = torch.cat([state.input_ids, tokens[:, state.num_computed, None]], 1)
            state.num_computed += 1
            logits = self._call(state, first=False)
        assert logits is not None
        return logits

    def _first_arguments(self, prompt: torch.Tensor) -> dict[str, Any]:
        import inspect

        mask = torch.ones_like(prompt)
        arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": True}
        if "position_ids" in inspect.signature(self._model.forward).parameters:
            arguments["position_ids"] = self._model._prepare_position_ids_for_generation(prompt, arguments)
        self._prepare_cache(arguments, prompt.shape[1])
        return arguments

    def _encoded_arguments(self, prompt: torch.Tensor) -> dict[str, Any]:
        mask = torch.ones_like(prompt)
        encoded = self._model.get_encoder()(input_ids=prompt, attention_mask=mask, return_dict=True)
        arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": True, "encoder_outputs": encoded}
        self._prepare_cache(arguments, 1)
        return arguments

    def _prepare_cache(self, arguments: dict[str, Any], length: int) -> None:
        config = self._model.generation_config
        prepare = getattr(self._model, "_prepare_cache_for_generation", None)
        if prepare is not None and config is not None:
            from transformers.generation import GenerationMode

            prepare(config, arguments, GenerationMode.GREEDY_SEARCH, 1, length + 1)

    def _call(self, state: _State, first: bool) -> torch.Tensor:
        length = None if first or not state.arguments["use_cache"] else 1
        inputs = self._model.prepare_inputs_for_generation(
            state.input_ids, next_sequence_length=length, is_first_iteration=first, **state.arguments
        )
        out = self._model(**inputs, return_dict=True)
        state.arguments = self._model._update_model_kwargs_for_generation(
            out, state.arguments, is_encoder_decoder=self._start is not None
        )
        return logits_of(out)[0, -1]
