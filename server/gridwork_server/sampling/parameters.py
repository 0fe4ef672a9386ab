"""The one list of sampling parameters: from it come the sampler's columns, the cuts of a draw, and neutral values.

A parameter is added with an entry in `PARAMETERS` and the code that applies it: a stage of `Sampler.begin`, or a cut in
`truncation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np

from gridwork_server._proto import shard_pb2 as pb

# A lower temperature gives the maximum just as well, and risks an overflow.
_MIN_TEMPERATURE = 1e-6


class Stage(IntFlag):
    """Work that a sequence needs beyond the most likely token. `Sampler.begin` does it in this order."""

    LOGPROBS = 1
    """Keep the model's own distribution, to report log-probabilities."""
    BIAS = 2
    """Add biases to logits."""
    PENALTY = 4
    """Penalize tokens of prompt and generation."""
    END = 8
    """Forbid the tokens that end a sequence while it is too short."""
    ALLOWED = 64
    """Forbid all tokens but those that the client allows."""
    DRAW = 16
    """Draw a token in place of the most likely one."""
    TRUNCATION = 32
    """Cut the distribution to candidates before the draw."""
    BEGIN = 128
    """Forbid the tokens that may not begin the generated text."""
    TEXT = 256
    """Apply rules on a token by the tokens before it."""
    FORCED = 512
    """Forbid all tokens but those that must come at a position."""


@dataclass(frozen=True)
class Parameter:
    """A number among the contract's `SamplingParameters` that the sampler keeps for each sequence."""

    field: str
    """Name in the contract."""
    dtype: Any
    """NumPy type of the sampler's column."""
    neutral: float
    """Value that changes nothing. Any other one makes the sequence need the stage."""
    stage: Stage
    """Stage that applies the parameter. Greedy sequences skip `DRAW` and `TRUNCATION`."""
    is_cut: bool = False
    """True if a draw drops tokens by the value."""
    allows_drafts: bool = True
    """False when a token depends on all tokens before it, so that a step cannot compute drafts of the sequence."""
    costly: float | None = None
    """A value that takes memory, for the memory profile; None: the neutral value takes no less."""
    column: Callable[[float, int], float] = lambda value, _vocab_size: value
    """Value that the column holds, from the contract's value and the size of the vocabulary."""


def _inverse_temperature(value: float, _vocab_size: int) -> float:
    return 1 / max(value, _MIN_TEMPERATURE)


def _top_k(value: float, vocab_size: int) -> float:
    """Keeping the whole vocabulary is no cut."""
    return value if value < vocab_size else 0


PARAMETERS = (
    Parameter("temperature", np.float32, 1, Stage.DRAW, costly=1.5, column=_inverse_temperature),
    Parameter("seed", np.uint64, 0, Stage.DRAW),
    # With top-k in every row, sums over the vocabulary are left out: none is the costlier value.
    Parameter("top_k", np.int64, 0, Stage.TRUNCATION, is_cut=True, column=_top_k),
    Parameter("typical_p", np.float32, 1, Stage.TRUNCATION, is_cut=True, costly=0.9),
    Parameter("top_p", np.float32, 1, Stage.TRUNCATION, is_cut=True, costly=0.9),
    Parameter("min_p", np.float32, 0, Stage.DRAW, is_cut=True, costly=0.01),
    Parameter("repetition_penalty", np.float32, 1, Stage.PENALTY, allows_drafts=False, costly=1.1),
    Parameter("frequency_penalty", np.float32, 0, Stage.PENALTY, allows_drafts=False),
    Parameter("presence_penalty", np.float32, 0, Stage.PENALTY, allows_drafts=False),
    Parameter("first_end_position", np.int64, 0, Stage.END, costly=2**31),
    Parameter("no_repeat_ngram_size", np.int64, 0, Stage.TEXT),
    Parameter("watermark_share", np.float32, 0, Stage.TEXT),
    # Without a share they change nothing.
    Parameter("watermark_bias", np.float32, 0, Stage(0)),
    Parameter("watermark_key", np.uint64, 0, Stage(0)),
)

CUTS = {parameter.field: parameter.neutral for parameter in PARAMETERS if parameter.is_cut}
"""Neutral value of each cut, by the contract's field."""

NO_DRAFTS = sum({parameter.stage for parameter in PARAMETERS if not parameter.allows_drafts}, Stage(0))
"""Stages of sequences that take no drafts."""


def neutral_parameters(**settings: Any) -> "pb.SamplingParameters":
    """Parameters that change nothing, except for the given ones."""
    return pb.SamplingParameters(**{each.field: each.neutral for each in PARAMETERS} | settings)


def costly_parameters() -> "pb.SamplingParameters":
    """Parameters whose sampling takes the most memory."""
    costly = {each.field: each.costly for each in PARAMETERS if each.costly is not None}
    return neutral_parameters(
        **costly, logit_bias_tokens=[0], logit_bias_values=[1.0], end_token_ids=[1], allowed_token_ids=[0]
    )
