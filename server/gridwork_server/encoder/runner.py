"""Computes batches for the router, in the contract's form."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from loguru import logger

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.encoder.batch import SequenceBatch
from gridwork_server.encoder.label_score import LabelScore
from gridwork_server.encoder.loading import LoadedEncoder
from gridwork_server.model.info import common_info
from gridwork_server.model.task import Task

_TASKS = {
    Task.GENERATE: pb.TASK_GENERATE,
    Task.EMBED: pb.TASK_EMBED,
    Task.CLASSIFY: pb.TASK_CLASSIFY,
    Task.RERANK: pb.TASK_RERANK,
    Task.FILL_MASK: pb.TASK_FILL_MASK,
}

_LABEL_SCORES = {
    LabelScore.SOFTMAX: pb.LABEL_SCORE_SOFTMAX,
    LabelScore.SIGMOID: pb.LABEL_SCORE_SIGMOID,
    LabelScore.LOGIT: pb.LABEL_SCORE_LOGIT,
    LabelScore.TANH: pb.LABEL_SCORE_TANH,
}

_OUTPUTS = {
    pb.EncodeRequest.OUTPUT_VECTOR: {Task.EMBED},
    pb.EncodeRequest.OUTPUT_TOKEN_VECTORS: {Task.EMBED},
    pb.EncodeRequest.OUTPUT_LABELS: {Task.CLASSIFY, Task.RERANK},
    pb.EncodeRequest.OUTPUT_TOKENS: {Task.FILL_MASK},
    pb.EncodeRequest.OUTPUT_SPARSE: {Task.FILL_MASK},
}
"""Tasks that have each output."""


class BadBatch(Exception):
    """A batch that violates the contract. The message says how."""


@dataclass(frozen=True)
class _Job:
    """A batch, and the wanted output."""

    batch: SequenceBatch
    output: "pb.EncodeRequest.Output"
    positions: torch.Tensor
    """Indices into the batch, `[num_positions]`, int64."""
    top_n: int
    prompt_lengths: tuple[int, ...]
    """Number of each sequence's first tokens that belong to a prompt; empty when none do."""

    def one(self, index: int) -> "_Job":
        """The job of a single sequence."""
        start, length = self.batch.starts[index], self.batch.lengths[index]
        mine = (self.positions >= start) & (self.positions < start + length)
        prompts = self.prompt_lengths[index : index + 1]
        return _Job(self.batch.one(index), self.output, self.positions[mine] - start, self.top_n, prompts)


class EncoderRunner:
    """Runs an encoder, in the model's thread."""

    def __init__(self, loaded: LoadedEncoder) -> None:
        self.loaded = loaded

    @torch.inference_mode()
    def encode(self, request: "pb.EncodeRequest") -> "pb.EncodeResponse":
        """Computes a batch. A sequence that fails by itself gets an error in its place. Raises BadBatch."""
        job, unknown = self._job(request)
        started = time.perf_counter()
        try:
            encodings = self._compute(job)
        except Exception as error:  # a model's code may raise anything
            if self.loaded.device.type != "cpu":
                raise
            count = len(job.batch.lengths)
            logger.warning(f"a batch of {count} sequences failed ({error}); they are computed one by one")
            encodings = [self._compute_alone(job.one(index)) for index in range(count)]
        for index, token in unknown.items():
            size = self.loaded.vocab_size
            encodings[index] = pb.Encoding(error=f"token {token} is not in the vocabulary of {size} tokens")
        elapsed = time.perf_counter() - started
        return pb.EncodeResponse(encodings=encodings, forward_us=int(elapsed * 1e6))

    def info(self) -> "pb.InfoResponse":
        """Description of the loaded model."""
        loaded, selection = self.loaded, self.loaded.selection
        info = common_info(loaded)
        info.MergeFrom(
            pb.InfoResponse(
                task=_TASKS[loaded.task],
                model_impl=selection.path.name,
                model_impl_reason=selection.reason,
                attention=selection.attention,
                max_context_tokens=loaded.max_input_tokens,
                max_input_tokens=loaded.max_input_tokens,
                embedding_size=loaded.embedding_size,
                labels=loaded.labels,
                label_score=_LABEL_SCORES[loaded.label_score],
                normalizes=loaded.pooling is not None and loaded.pooling.normalizes,
                excludes_prompt=loaded.pooling is not None and loaded.pooling.excludes_prompt,
            )
        )
        return info

    def _job(self, request: "pb.EncodeRequest") -> tuple[_Job, dict[int, int]]:
        """Checks a request. Returns the job, and an unknown token of each sequence that has one, by index. Such a
        token is replaced, and its sequence gets an error. Raises BadBatch."""
        token_ids = np.array(request.token_ids, dtype=np.int64)
        types = np.array(request.token_type_ids, dtype=np.int64)
        positions = np.array(request.positions, dtype=np.int64)
        lengths = tuple(request.lengths)
        if self.loaded.task not in _OUTPUTS.get(request.output, set()):
            raise BadBatch(f"--task {self.loaded.task} has no output {request.output}")
        if not lengths or min(lengths) < 1 or sum(lengths) != len(token_ids):
            raise BadBatch(f"{len(token_ids)} tokens do not make up sequences of {lengths} tokens")
        unknown: dict[int, int] = {}
        if token_ids.max() >= self.loaded.vocab_size:
            at = np.flatnonzero(token_ids >= self.loaded.vocab_size)
            owners = np.searchsorted(np.cumsum(lengths), at, side="right")
            unknown = dict(zip(owners.tolist(), token_ids[at].tolist(), strict=True))
            token_ids[at] = 0
        if len(types) not in (0, len(token_ids)):
            raise BadBatch(f"{len(types)} token types are given for {len(token_ids)} tokens")
        limit = self.loaded.selection.positions.capacity
        if limit is not None and max(lengths) > limit:
            raise BadBatch(f"a sequence has {max(lengths)} tokens, and the model positions for {limit}")
        if len(positions) and (positions.max() >= len(token_ids) or (np.diff(positions) <= 0).any()):
            raise BadBatch("positions must be ascending and lie in the batch")
        if request.output == pb.EncodeRequest.OUTPUT_TOKENS and not 0 < request.top_n <= self.loaded.vocab_size:
            raise BadBatch(f"top_n is {request.top_n}, and the vocabulary has {self.loaded.vocab_size} tokens")
        # On GPUs, a type without an embedding would end the process.
        known_types = getattr(self.loaded.config, "type_vocab_size", None) or 0
        if len(types) and (known_types < 2 or types.max() >= known_types):
            types = types[:0]
        if len(request.prompt_lengths) not in (0, len(lengths)):
            raise BadBatch(f"{len(request.prompt_lengths)} prompts are given for {len(lengths)} sequences")
        device = self.loaded.device
        batch = SequenceBatch(
            torch.from_numpy(token_ids).to(device), torch.from_numpy(types).to(device) if len(types) else None, lengths
        )
        prompts = tuple(request.prompt_lengths)
        job = _Job(batch, request.output, torch.from_numpy(positions).to(device), request.top_n, prompts)
        return job, unknown

    def _compute_alone(self, job: _Job) -> "pb.Encoding":
        try:
            return self._compute(job)[0]
        except Exception as error:
            return pb.Encoding(error=f"{type(error).__name__}: {error}")

    def _compute(self, job: _Job) -> "list[pb.Encoding]":
        path, batch = self.loaded.selection.path, job.batch
        if job.output == pb.EncodeRequest.OUTPUT_TOKENS:
            return self._top_tokens(job)
        if job.output == pb.EncodeRequest.OUTPUT_SPARSE:
            return self._sparse(job)
        if job.output == pb.EncodeRequest.OUTPUT_TOKEN_VECTORS:
            hidden = path.hidden_states(batch).float()
            return [_encoding(part.flatten()) for part in hidden.split(list(batch.lengths))]
        if job.output == pb.EncodeRequest.OUTPUT_VECTOR:
            assert self.loaded.pooling is not None
            rows = self.loaded.pooling.pool(path.hidden_states(batch), batch, job.prompt_lengths)
        else:
            rows = path.label_logits(batch).float()
        return [_encoding(row) for row in rows.cpu()]

    def _top_tokens(self, job: _Job) -> "list[pb.Encoding]":
        encodings = [pb.Encoding() for _ in job.batch.lengths]
        if len(job.positions) == 0:
            return encodings
        logits = self.loaded.selection.path.token_logits(job.batch, job.positions).float()
        values, token_ids = logits.topk(job.top_n, dim=-1)
        normalizers = logits.logsumexp(-1)
        ends = torch.tensor(job.batch.lengths, device=job.positions.device).cumsum(0)
        owners = torch.searchsorted(ends, job.positions, right=True).tolist()
        for row, owner in enumerate(owners):
            encoding = encodings[owner]
            if not torch.isfinite(normalizers[row]):
                encoding.error = _NOT_FINITE
            encoding.values.extend(values[row].tolist())
            encoding.token_ids.extend(token_ids[row].tolist())
            encoding.log_normalizers.append(float(normalizers[row]))
        return encodings

    def _sparse(self, job: _Job) -> "list[pb.Encoding]":
        """Computes SPLADE vectors (Formal et al. 2021, equation 1 with the maximum of v2), a sequence at a time: logits
        of all tokens of a batch would be large."""
        encodings = []
        for index in range(len(job.batch.lengths)):
            one = job.batch.one(index)
            positions = torch.arange(one.lengths[0], device=one.token_ids.device)
            logits = self.loaded.selection.path.token_logits(one, positions).float()
            weights = logits.relu().log1p().amax(0)
            token_ids = weights.nonzero().flatten()
            encoding = _encoding(weights[token_ids])
            encoding.token_ids.extend(token_ids.tolist())
            encodings.append(encoding)
        return encodings


_NOT_FINITE = "the model's result for this sequence is not finite"


def _encoding(values: torch.Tensor) -> "pb.Encoding":
    """Encoding of one sequence. values: `[n]`."""
    if not bool(torch.isfinite(values).all()):
        return pb.Encoding(error=_NOT_FINITE)
    return pb.Encoding(values=values.tolist())
