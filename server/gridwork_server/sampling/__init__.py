"""Batched sampling: penalties, truncation, seeded random draws and log-probabilities, no loop over sequences.

Each file has one subject: `parameters` (the list of parameters), `sampler` (settings of each sequence, and the order of
stages), `sampled` (results, on the device and on the host), `sparse_rows` (token tables for penalties and biases),
`weights` (exact integer softmax weights), `draw` and `truncation` (draws from a whole distribution; top-k, typical-p,
top-p, min-p), `philox` (random numbers from seed and position), `logprobs`, `drafts` (which drafts are taken),
`text_rules` (rules on a token by the tokens before it), with `watermark`, and `grammars` (texts within their grammars),
with `grammar_library`, `token_masks` and `token_checks`.
"""

from gridwork_server.sampling.drafts import taken
from gridwork_server.sampling.grammars import Grammars
from gridwork_server.sampling.logprobs import best_logprobs, token_logprobs
from gridwork_server.sampling.parameters import costly_parameters, neutral_parameters
from gridwork_server.sampling.sampler import SampleOutput, Sampler
from gridwork_server.sampling.token_checks import TokenChecks
from gridwork_server.sampling.token_masks import TokenMasks

__all__ = [
    "Grammars",
    "SampleOutput",
    "Sampler",
    "TokenChecks",
    "TokenMasks",
    "best_logprobs",
    "costly_parameters",
    "neutral_parameters",
    "taken",
    "token_logprobs",
]
