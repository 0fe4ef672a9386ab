"""Tests which tokens a model can be given."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.model.token_bounds import TokenBounds, embedding_rows


def refusal(bounds: TokenBounds, *tokens: int, num_prompt: int | None = None, **settings: Any) -> str | None:
    num_prompt = len(tokens) if num_prompt is None else num_prompt
    return bounds.refusal(pb.NewSequence(token_ids=tokens, num_prompt_tokens=num_prompt, **settings))


def test_prompts_are_bounded_by_embedding_rows_and_logprobs_by_logits() -> None:
    bounds = TokenBounds(inputs=12, outputs=10, has_encoder=False)
    assert refusal(bounds, 3, 11) is None
    assert "token 12" in str(refusal(bounds, 3, 12)) and "12 rows" in str(refusal(bounds, 3, 12))
    assert refusal(bounds, 9, prompt_logprobs=True) is None
    assert "10 logits" in str(refusal(bounds, 10, prompt_logprobs=True))
    assert not bounds.may_sample_unusable


def test_logits_bound_prompts_if_the_embedding_is_unknown() -> None:
    bounds = TokenBounds(inputs=0, outputs=10, has_encoder=False)
    assert refusal(bounds, 9) is None and refusal(bounds, 10) is not None


def test_generated_tokens_are_not_bounded_by_the_encoder() -> None:
    bounds = TokenBounds(inputs=5, outputs=10, has_encoder=True)
    assert refusal(bounds, 4, 9, num_prompt=1) is None
    assert refusal(bounds, 5, 9, num_prompt=1) is not None
    assert not bounds.may_sample_unusable
    assert TokenBounds(inputs=5, outputs=10, has_encoder=False).may_sample_unusable


def _raises() -> Any:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("embedding", "rows"),
    [
        (lambda: torch.nn.Embedding(7, 4), 7),
        (lambda: SimpleNamespace(weight=torch.zeros(6, 4)), 6),
        (lambda: None, 0),
        (_raises, 0),
    ],
)
def test_embedding_rows_are_counted_or_unknown(embedding: Any, rows: int) -> None:
    assert embedding_rows(SimpleNamespace(get_input_embeddings=embedding)) == rows
