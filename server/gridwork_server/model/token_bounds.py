"""Tokens that a model has nothing for. The router refuses them; should one come all the same, it harms its own sequence
alone: in a step, an id behind the embedding's last row would be an error of all its sequences."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb


def embedding_rows(model: Any) -> int:
    """How many tokens a model can be given; 0 when its embedding does not say."""
    try:
        embedding = model.get_input_embeddings()
        rows = getattr(embedding, "num_embeddings", None)
        if not isinstance(rows, int):
            rows = embedding.weight.shape[0]
        return int(rows)
    except (AttributeError, NotImplementedError, TypeError, IndexError):
        return 0


class TokenBounds:
    """Which ids a model can be given, and which it can give."""

    def __init__(self, inputs: int, outputs: int, has_encoder: bool) -> None:
        """inputs: rows of the embedding, 0 when unknown; outputs: logits; has_encoder: which alone reads prompts."""
        self._inputs = inputs or outputs
        self._outputs = outputs
        self._has_encoder = has_encoder
        self.may_sample_unusable = not has_encoder and self._outputs > self._inputs
        """Whether there are tokens that can be sampled, and not be computed."""

    def refusal(self, new: "pb.NewSequence") -> str | None:
        """Why a sequence cannot be computed."""
        tokens = new.token_ids[: new.num_prompt_tokens] if self._has_encoder else new.token_ids
        largest = max(tokens, default=0)
        if largest >= self._inputs:
            return self.message(largest)
        if new.prompt_logprobs and largest >= self._outputs:
            return f"token {largest} has no log-probability: the model gives {self._outputs} logits"
        return None

    def unusable(self, tokens: np.ndarray) -> np.ndarray:
        """bool: which of these cannot be computed. int64."""
        return tokens >= self._inputs

    def message(self, token: int) -> str:
        """What is wrong with it."""
        return f"token {token} is not in the vocabulary: the model's embedding has {self._inputs} rows"
