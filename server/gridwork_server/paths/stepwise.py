"""The path for models that only their own preparations for `generate()` know how to call, one sequence at a time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gridwork_server.paths.base import CacheNeeds, PathError, wanted_tokens
from gridwork_server.paths.caller import logits_of

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb
    from gridwork_server.sequence_table import SequenceTable, StepBatch


@dataclass
class _State:
    """What `generate()` would keep of a sequence."""

    input_ids: torch.Tensor
    """int64 `[1, num_tokens]`, all computed."""
    arguments: dict[str, Any]


class StepwisePath:
    """Does for each sequence what `generate()` does, a token at a time."""

    name = "solo"

    def __init__(self, model: Any, device: torch.device, attention_name: str) -> None:
        """Raises PathError for a model without Transformers' preparations for generating."""
        for method in ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation"):
            if not hasattr(model, method):
                raise PathError(f"{type(model).__name__} has no {method}()")
        self._model, self._device = model, device
        self.attention_name = attention_name
        self.needs = CacheNeeds(0)
        self._states: dict[int, _State] = {}

    def allocate(self, limits: "pb.WarmupRequest", num_blocks: int) -> None:
        """See ModelPath."""
        self.reset()

    def release(self, ids: np.ndarray) -> None:
        """See ModelPath."""
        for id in ids.tolist():
            self._states.pop(id, None)

    def reset(self) -> None:
        """See ModelPath."""
        self._states.clear()

    def forward(
        self, batch: "StepBatch", table: "SequenceTable", extra: np.ndarray
    ) -> tuple[torch.Tensor, np.ndarray]:
        """See ModelPath. The prompt is computed in one piece and every later token by itself, also after a preemption:
        some models give other answers when tokens are computed together. Raises PathError for logits of prompts, which
        such models do not give."""
        if len(extra):
            raise PathError(f"{type(self._model).__name__} gives no log-probabilities of prompts")
        kept = wanted_tokens(batch, extra)
        rows = []
        for token in kept.tolist():
            id = int(batch.sequence_ids[batch.row[token]])
            rows.append(self._advance(id, int(batch.positions[token]) + 1, table))
        return (torch.stack(rows) if rows else torch.empty(0, 0)), kept

    def _advance(self, id: int, length: int, table: "SequenceTable") -> torch.Tensor:
        """Logits `[vocab_size]` after a sequence's first `length` tokens."""
        tokens = torch.from_numpy(table.token_ids[id, :length].astype(np.int64))[None].to(self._device)
        state = self._states.get(id)
        logits = None
        if state is None or state.input_ids.shape[1] >= length:
            prompt = tokens[:, : min(length, max(1, int(table.num_prompt[id])))]
            state = self._states[id] = _State(prompt, self._first_arguments(prompt))
            logits = self._call(state, first=True)
        while (known := state.input_ids.shape[1]) < length:
            state.input_ids = tokens[:, : known + 1]
            logits = self._call(state, first=False)
        assert logits is not None
        return logits

    def _first_arguments(self, prompt: torch.Tensor) -> dict[str, Any]:
        import inspect

        mask = torch.ones_like(prompt)
        arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": True}
        if "position_ids" in inspect.signature(self._model.forward).parameters:
            arguments["position_ids"] = self._model._prepare_position_ids_for_generation(prompt, arguments)
        config = self._model.generation_config
        prepare = getattr(self._model, "_prepare_cache_for_generation", None)
        if prepare is not None and config is not None:
            from transformers.generation import GenerationMode

            prepare(config, arguments, GenerationMode.GREEDY_SEARCH, 1, prompt.shape[1] + 1)
        return arguments

    def _call(self, state: _State, first: bool) -> torch.Tensor:
        length = None if first or not state.arguments["use_cache"] else 1
        inputs = self._model.prepare_inputs_for_generation(
            state.input_ids, next_sequence_length=length, is_first_iteration=first, **state.arguments
        )
        out = self._model(**inputs, return_dict=True)
        state.arguments = self._model._update_model_kwargs_for_generation(out, state.arguments)
        return logits_of(out)[0, -1]
