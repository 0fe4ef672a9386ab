"""What a step has sampled: on the device while it is computed, on the host once it has been read."""

from dataclasses import dataclass, field

import numpy as np
import torch

from gridwork_kernels.device_copies import to_device, to_host
from gridwork_server.sampling.logprobs import log_normalizers
from gridwork_server.sampling.truncation import best_tokens
from gridwork_server.sampling.weights import rows_per_chunk


@dataclass
class SampleOutput:
    """What a step sampled, on the CPU, in the order of its sequence ids."""

    token_ids: torch.Tensor  # int64 [B]
    # bool [B]: the row's maximum is a NaN or infinite, or it has no finite logit at all; its token means nothing.
    failed: np.ndarray
    logprobs: np.ndarray | None = None  # float32 [B], NaN where not asked for; None when nobody asked
    num_top: np.ndarray | None = None  # uint32 [B], how many of the two below are this row's; None when nobody asked
    top_ids: np.ndarray | None = None  # uint32, concatenated, the most likely first
    top_logprobs: np.ndarray | None = None  # float32, parallel to top_ids


@dataclass
class Report:
    """Log-probabilities of R rows, on the device."""

    rows: np.ndarray  # int64 [R]
    top_n: np.ndarray  # int64 [B], how many of the most likely tokens each row reports
    chosen: torch.Tensor  # float32 [R]
    top_ids: torch.Tensor | None = None  # int64 [A, K], of those rows that report any, the most likely first
    top_logprobs: torch.Tensor | None = None  # float32 [A, K]

    def tensors(self) -> list[torch.Tensor]:
        """Those that there are."""
        found = (self.chosen, self.top_ids, self.top_logprobs)
        return [tensor for tensor in found if tensor is not None]

    def fill(self, output: SampleOutput, chosen: torch.Tensor, *top: torch.Tensor) -> None:
        """Puts what was read into the output. chosen, top: `tensors`, on the host."""
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
    """A step's tokens on the logits' device, not waited for."""

    token_ids: torch.Tensor  # int64 [B]
    maxima: torch.Tensor  # float32 [B], each row's largest logit, which tells whether it failed
    report: Report | None = None
    _on_host: list[torch.Tensor] = field(default_factory=list)
    _copied: torch.cuda.Event | None = None

    def start_reading(self) -> None:
        """Begins to copy all of it to the host, which need not be waited for."""
        tensors = [self.token_ids, self.maxima, *(self.report.tensors() if self.report is not None else ())]
        self._on_host = [to_host(tensor) for tensor in tensors]
        if self.token_ids.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    @property
    def can_be_read(self) -> bool:
        """Whether `read` would return without waiting, once reading was started."""
        return self._copied is None or self._copied.query()

    def read(self) -> SampleOutput:
        """Waits for it, unless it is there."""
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
    """The raw distribution of the rows that report log-probabilities, kept before anything changes the logits."""

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
        """tokens: int64 [B], those that were sampled; top_n: int64 [B], how many of the most likely tokens each row
        reports."""
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
