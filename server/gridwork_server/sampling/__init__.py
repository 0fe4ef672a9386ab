"""Batched sampling: penalties, truncation, seeded random draws and log-probabilities, no loop over sequences.

Files, each one subject: `sampler` (per-sequence settings and the order of things), `sampled` (what comes of it, on the
device and on the host), `sparse_rows` (token tables behind penalties and biases), `weights` (exact integer softmax
weights), `draw` and `truncation` (all of a distribution; top-k, typical-p, top-p, min-p), `philox` (random numbers from
seed and position), `logprobs`, `drafts` (which of the tokens behind drafts are taken).
"""

from gridwork_server.sampling.drafts import taken
from gridwork_server.sampling.logprobs import best_logprobs, token_logprobs
from gridwork_server.sampling.sampler import SampleOutput, Sampler

__all__ = ["SampleOutput", "Sampler", "best_logprobs", "taken", "token_logprobs"]
