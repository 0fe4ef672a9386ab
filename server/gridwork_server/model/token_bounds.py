"""Finds tokens outside a model's vocabulary.

The router refuses them already. A token that arrives anyway fails its own sequence alone: in a step, an id past the
embedding's last row would fail all sequences.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gridwork_server._proto import shard_pb2 as pb


def embedding_rows(model: Any) -> int:
    """Number of tokens that the model's embedding has rows for; 0 when the embedding does not tell."""
    try:
        embedding = model.get_input_embeddings()
        rows = getattr(embedding, "num_embeddings", None)
        if not isinstance(rows, int):
            rows = embedding.weight.shape[0]
        return int(rows)
    except (AttributeError, NotImplementedError, TypeError, IndexError):
        return 0


class TokenBounds:
    """Bounds of the token ids that a model can take as input, and of those that it can give."""

    def __init__(self, inputs: int, outputs: int, has_encoder: bool) -> None:
        """inputs: rows of the embedding, 0 when unknown; outputs: logits; has_encoder: the encoder alone reads
        prompts."""
        self._inputs = inputs or outputs
        self._outputs = outputs
        self._has_encoder = has_encoder
        self.may_sample_unusable = not has_encoder and self._outputs > self._inputs
        """True if a token can be sampled that cannot be computed as input."""

    def refusal(self, new: "pb.NewSequence") -> str | None:
        """Reason why a sequence cannot be computed; None when it can."""
        tokens = new.token_ids[: new.num_prompt_tokens] if self._has_encoder else new.token_ids
        largest = max(tokens, default=0)
        if largest >= self._inputs:
            return self.message(largest)
        if new.prompt_logprobs and largest >= self._outputs:
            return f"token {largest} has no log-probability: the model gives {self._outputs} logits"
        return None

    def unusable(self, tokens: np.ndarray) -> np.ndarray:
        """Tells for each token, int64, whether it cannot be computed; returns bools of the same shape."""
        return tokens >= self._inputs

    def message(self, token: int) -> str:
        """Error message for a token outside the vocabulary."""
        return f"token {token} is not in the vocabulary: the model's embedding has {self._inputs} rows"
