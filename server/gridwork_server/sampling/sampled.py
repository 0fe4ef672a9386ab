"""Results of sampling a step: on the device while it is computed, on the host after it has been read."""

from dataclasses import dataclass, field

import numpy as np
import torch

from gridwork_kernels.device_copies import to_device, to_host
from gridwork_server.sampling.logprobs import log_normalizers
from gridwork_server.sampling.truncation import best_tokens
from gridwork_server.sampling.weights import rows_per_chunk


@dataclass
class SampleOutput:
    """Results of a step on the CPU, in the order of its sequence ids."""

    token_ids: torch.Tensor  # int64 [B]
    # bool [B]: the row's maximum is NaN or infinite, or the row has no finite logit. The token means nothing then.
    failed: np.ndarray
    logprobs: np.ndarray | None = None  # float32 [B], NaN for rows that do not report any; None: no row does
    num_top: np.ndarray | None = None  # uint32 [B], entries of each row in the two below; None: no row has any
    top_ids: np.ndarray | None = None  # uint32, concatenated, the most likely first
    top_logprobs: np.ndarray | None = None  # float32, parallel to top_ids


@dataclass
class Report:
    """Log-probabilities of R rows out of B, on the device."""

    rows: np.ndarray  # int64 [R]
    top_n: np.ndarray  # int64 [B], number of most likely tokens that each row reports
    chosen: torch.Tensor  # float32 [R]
    top_ids: torch.Tensor | None = None  # int64 [A, K], for the A rows that report any, the most likely first
    top_logprobs: torch.Tensor | None = None  # float32 [A, K]

    def tensors(self) -> list[torch.Tensor]:
        """The tensors that are not None."""
        found = (self.chosen, self.top_ids, self.top_logprobs)
        return [tensor for tensor in found if tensor is not None]

    def fill(self, output: SampleOutput, chosen: torch.Tensor, *top: torch.Tensor) -> None:
        """Writes the report into the output. chosen, top: `tensors`, on the host."""
        output.logprobs = np.full(len(self.top_n), np.nan, dtype=np.float32)
        output.logprobs[self.rows] = chosen.numpy()
        if not self.top_n.any():
            return
        counts = np.where(output.failed, 0, self.top_n)
        output.num_top = counts.astype(np.uint32)
        ids, logprobs = (tensor.numpy() for tensor in top)
        asking = self.rows[self.top_n[self.rows] > 0]
        reported = np.arange(ids.shape[1]) < counts[asking][:, None]
        output.top_ids, output.top_logprobs = ids[reported].astype(np.uint32), logprobs[reported]


@dataclass
class Sampled:
    """Tokens of a step on the logits' device, which may still be being computed."""

    token_ids: torch.Tensor  # int64 [B]
    maxima: torch.Tensor  # float32 [B], each row's largest logit, which shows whether the row failed
    report: Report | None = None
    _on_host: list[torch.Tensor] = field(default_factory=list)
    _copied: torch.cuda.Event | None = None

    def start_reading(self) -> None:
        """Starts to copy everything to the host, without waiting."""
        tensors = [self.token_ids, self.maxima, *(self.report.tensors() if self.report is not None else ())]
        self._on_host = [to_host(tensor) for tensor in tensors]
        if self.token_ids.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    @property
    def can_be_read(self) -> bool:
        """True if `read` returns without waiting, after `start_reading`."""
        return self._copied is None or self._copied.query()

    def read(self) -> SampleOutput:
        """Waits for the results on the host."""
        if not self._on_host:
            self.start_reading()
        if self._copied is not None:
            self._copied.synchronize()
        token_ids, maxima, *rest = self._on_host
        output = SampleOutput(token_ids, ~np.isfinite(maxima.numpy()))
        if self.report is not None:
            self.report.fill(output, *rest)
        return output


@dataclass
class Observed:
    """Logits of the rows that report log-probabilities, copied before any stage changes them."""

    rows: np.ndarray  # int64 [R]
    logits: torch.Tensor  # float32 [R, V], a copy
    normalizers: torch.Tensor  # float32 [R]

    @staticmethod
    def of(logits: torch.Tensor, rows: np.ndarray) -> "Observed":
        kept = logits.index_select(0, to_device(rows, logits.device))
        step = rows_per_chunk(kept)
        normalizers = torch.cat([log_normalizers(kept[start : start + step]) for start in range(0, len(kept), step)])
        return Observed(rows, kept, normalizers)

    def report(self, tokens: torch.Tensor, top_n: np.ndarray) -> Report:
        """Log-probabilities of sampled tokens. tokens: int64 [B]; top_n: int64 [B], number of most likely tokens that
        each row reports."""
        device = self.logits.device
        sampled = tokens.index_select(0, to_device(self.rows, device))
        chosen = self.logits.gather(1, sampled[:, None])[:, 0] - self.normalizers
        asking = np.nonzero(top_n[self.rows])[0]
        if not len(asking):
            return Report(self.rows, top_n, chosen)
        index = to_device(asking, device)
        raw = self.logits[index]
        ids = best_tokens(raw, int(top_n.max()))[0].sort(1).values
        values, order = raw.gather(1, ids).sort(stable=True, dim=1, descending=True)
        return Report(self.rows, top_n, chosen, ids.gather(1, order), values - self.normalizers[index, None])
