"""Log-probabilities of the model's own distribution, natural logarithms."""

import torch

from gridwork_server.sampling.truncation import best_tokens
from gridwork_server.sampling.weights import rows_per_chunk


def log_normalizers(logits: torch.Tensor) -> torch.Tensor:
    """log(sum(exp(row))) float32 [R] of logits [R, vocab]. The logits do not change."""
    maxima = logits.amax(1, keepdim=True)
    return (logits - maxima).exp_().sum(1).log_() + maxima[:, 0]


def token_logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Log-probability of one token in each row, float32 [T] on the logits' device, for log-probabilities of prompts.

    logits: [T, vocab], any floating dtype; token_ids: int64 [T]. Rows are computed in chunks, so that the extra memory
    does not grow with T.
    """
    token_ids = token_ids.to(logits.device)
    result = torch.empty(len(token_ids), dtype=torch.float32, device=logits.device)
    step = rows_per_chunk(logits, factor=8)
    for start in range(0, len(token_ids), step):
        chunk = logits[start : start + step].to(torch.float32)
        chosen = chunk.gather(1, token_ids[start : start + step, None])[:, 0]
        result[start : start + step] = chosen - log_normalizers(chunk)
    return result


def best_logprobs(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely tokens of each row, int64 [T, count], and their log-probabilities, float32 [T, count], both on
    the logits' device. The most likely token comes first, and the lowest id among equal ones.

    logits: [T, vocab], any floating dtype; count: 1 to vocab. Rows are computed in chunks, as in `token_logprobs`.
    """
    ids = torch.empty(len(logits), count, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(len(logits), count, dtype=torch.float32, device=logits.device)
    step = rows_per_chunk(logits, factor=8)
    for start in range(0, len(logits), step):
        chunk = logits[start : start + step].to(torch.float32)
        best = best_tokens(chunk, count)[0].sort(1).values
        values, order = chunk.gather(1, best).sort(stable=True, dim=1, descending=True)
        ids[start : start + step] = best.gather(1, order)
        logprobs[start : start + step] = values - log_normalizers(chunk)[:, None]
    return ids, logprobs
