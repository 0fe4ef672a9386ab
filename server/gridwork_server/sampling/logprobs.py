"""Log-probabilities of the model's own distribution, natural logarithms."""

import torch

from gridwork_server.sampling.weights import rows_per_chunk


def log_normalizers(logits: torch.Tensor) -> torch.Tensor:
    """log(sum(exp(row))) float32 [R] of logits [R, vocab]; the logits stay as they are."""
    maxima = logits.amax(1, keepdim=True)
    return (logits - maxima).exp_().sum(1).log_() + maxima[:, 0]


def token_logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Log-probability float32 [T], on the logits' device, of one token in each row; made for a prompt's logprobs.

    logits: [T, vocab], any floating dtype; token_ids: int64 [T]. Works through the rows in chunks, so that the extra
    memory does not grow with T.
    """
    token_ids = token_ids.to(logits.device)
    result = torch.empty(len(token_ids), dtype=torch.float32, device=logits.device)
    step = rows_per_chunk(logits, factor=8)
    for start in range(0, len(token_ids), step):
        chunk = logits[start : start + step].to(torch.float32)
        chosen = chunk.gather(1, token_ids[start : start + step, None])[:, 0]
        result[start : start + step] = chosen - log_normalizers(chunk)
    return result
