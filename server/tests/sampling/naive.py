"""A slow sampler for one sequence at a time, written from the contract, to compare the batched sampler with."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    WatermarkLogitsProcessor,
)


@dataclass
class Parameters:
    """Stands in for the contract's SamplingParameters message. Every field is neutral unless given."""

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias_tokens: list[int] = field(default_factory=list)
    logit_bias_values: list[float] = field(default_factory=list)
    seed: int = 0
    first_end_position: int = 0
    end_token_ids: list[int] = field(default_factory=list)
    allowed_token_ids: list[int] = field(default_factory=list)
    run_tokens: list[int] = field(default_factory=list)
    run_lengths: list[int] = field(default_factory=list)
    run_biases: list[float] = field(default_factory=list)
    no_repeat_ngram_size: int = 0
    begin_forbidden_token_ids: list[int] = field(default_factory=list)
    forced_positions: list[int] = field(default_factory=list)
    forced_token_ids: list[int] = field(default_factory=list)
    watermark_share: float = 0.0
    watermark_bias: float = 0.0
    watermark_key: int = 0


def penalized(logits: torch.Tensor, params: Parameters, prompt: list[int], generated: list[int]) -> torch.Tensor:
    """Applies bias, penalties and the shortest length to logits float32 [V], token by token."""
    values = logits.numpy().astype(np.float32).copy()
    for token, bias in zip(params.logit_bias_tokens, params.logit_bias_values, strict=True):
        values[token] += np.float32(bias)
    for token in set(prompt) | set(generated):
        penalty = np.float32(params.repetition_penalty)
        values[token] = values[token] * penalty if values[token] < 0 else values[token] / penalty
    for token, count in Counter(generated).items():
        values[token] -= np.float32(params.frequency_penalty) * np.float32(count)
        values[token] -= np.float32(params.presence_penalty)
    if len(prompt) + len(generated) < params.first_end_position:
        for token in params.end_token_ids:
            values[token] = -np.inf
    return torch.from_numpy(values)


def warped(logits: torch.Tensor, params: Parameters) -> torch.Tensor:
    """Applies temperature and truncation to logits [V] in float64 by Transformers' own processors. Dropped tokens get
    -inf."""
    scores, ids = logits[None].double(), torch.zeros((1, 1), dtype=torch.int64)
    scores = TemperatureLogitsWarper(params.temperature)(ids, scores) if params.temperature != 1 else scores
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.typical_p < 1:
        scores = TypicalLogitsWarper(params.typical_p)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p > 0:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    return scores[0]


def shortest_length_by_transformers(
    logits: torch.Tensor, min_new_tokens: int, end_token_ids: list[int], prompt: list[int], generated: list[int]
) -> torch.Tensor:
    """Applies Transformers' minimum of new tokens to logits float32 [V]."""
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), min_new_tokens, end_token_ids)
    return processor(torch.tensor([prompt + generated]), logits[None].clone())[0]


def repetition_by_transformers(logits: torch.Tensor, penalty: float, tokens: list[int]) -> torch.Tensor:
    """Applies Transformers' repetition penalty to logits float32 [V]."""
    return RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), logits[None].clone())[0]


def ruled_by_transformers(
    logits: torch.Tensor, params: Parameters, prompt: list[int], generated: list[int]
) -> torch.Tensor:
    """Applies Transformers' own processors for rules on the tokens before to logits float32 [V]."""
    ids, scores = torch.tensor([prompt + generated]), logits[None].clone()
    ends = np.cumsum(params.run_lengths).tolist()
    runs = [params.run_tokens[end - length : end] for end, length in zip(ends, params.run_lengths, strict=True)]
    if runs:
        biases = [[run, bias] for run, bias in zip(runs, params.run_biases, strict=True)]
        scores = SequenceBiasLogitsProcessor(biases)(ids, scores)
    if params.begin_forbidden_token_ids:
        begin = SuppressTokensAtBeginLogitsProcessor(params.begin_forbidden_token_ids, len(prompt))
        scores = begin(ids, scores)
    if params.no_repeat_ngram_size:
        scores = NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size)(ids, scores)
    if params.watermark_share:
        watermark = WatermarkLogitsProcessor(
            vocab_size=len(logits),
            device="cpu",
            greenlist_ratio=params.watermark_share,
            bias=params.watermark_bias,
            hashing_key=params.watermark_key,
        )
        scores = watermark(ids, scores)
    return scores[0]
