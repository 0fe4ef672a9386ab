"""Distinguishes a path's errors from rounding, for 16-bit models.

In float32 a path is right when its logits equal those of plain `forward()`. In 16 bits, two right computations differ
too. Every row differs by rounding. Some rows differ by much more, where two experts' scores are nearly equal and
rounding decides which expert computes a token. No fixed bound separates this from an error. So there are three
questions; each is asked only when the one before leaves a doubt:

1. **Are the differences small?** They must be below the rounding of any model of some depth. This needs only the two
   computations that are compared. Small models always get the third question too, which takes no time for them.
2. **Does rounding change as much?** Plain `forward()` runs once more, with every module's results changed at random by
   as much as they are rounded. If the path differs clearly less, an error could not be distinguished from rounding at
   all. Differently chosen experts are left to the third question.
3. **Is the path right in float32, and does it round in 16 bits as `forward()` does?**

   a) The path and `forward()` are computed in float32 with the model's own weights (`float32_forward`). Their logits
      must agree within the bound for float32 models. This shows any wrong mask, position, rotary embedding, block or
      window, however much the model's 16 bits hide.
   b) The path in 16 bits, as it will run, is compared with that float32 `forward()`, and so is plain `forward()` in 16
      bits. Both repeat the choices made in float32, such as experts (`routing_replay`). Only rounding remains, equally
      in both. A path with a larger difference has an error that only its 16-bit form has, for example in a kernel.

All weights are copied to float32 at once if memory allows, otherwise one module at a time.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loguru import logger
from torch import nn

from gridwork_server.errors import PathError
from gridwork_server.paths import memory, self_check
from gridwork_server.paths.base import ModelPath
from gridwork_server.paths.float32_forward import in_float32
from gridwork_server.paths.routing_replay import RoutingReplay
from gridwork_server.paths.self_check import Differences, differences
from gridwork_server.startup import deferred_imports

if TYPE_CHECKING:
    from gridwork_server.parallel.group import RankGroup
    from gridwork_server.paths.caller import Caller
    from gridwork_server.paths.seq2seq import Seq2SeqCaller

_SMALL_DIFFERENCE = {torch.bfloat16: 0.02, torch.float16: 0.0025}
"""Largest differences that need no further question, in rows that an error would reach, as a share of the logits'
spread."""

_ALWAYS_IN_FLOAT32_BYTES = 2**26
"""Maximum size of the weights of a model that is always compared in float32."""

_ONE_ROW_FACTOR = 2.5
"""Factor by which any single row may differ more."""

_OWN_ATTENTION_FACTOR = 3
"""Factor for paths that run the model's own attention over its own cache: models with recurrent state compute a prompt
by another algorithm than a decode."""

_BELOW_NOISE = 0.8
"""Largest differences that rounding hides, as a share of the differences that rounding makes."""

_ROUNDING_FACTOR = 2.0
"""Largest error of rows that an error would reach, as a multiple of plain `forward()`'s error in such a row, or in most
rows. Right paths of all types of Transformers had up to 1.6 times as much in any row."""

_ROUNDING_FACTOR_ONE_ROW = 4.0
"""Multiple for any single row: models that round by much do so by very different amounts from row to row."""


class RoundingCheck:
    """Measures the rounding of one model as needed, and checks paths against it."""

    def __init__(
        self,
        model: Any,
        caller: "Caller | Seq2SeqCaller",
        dtype: torch.dtype,
        sequences: list[np.ndarray],
        group: "RankGroup",
        use_attention: Callable[[bool], None],
    ) -> None:
        """sequences: token ids, all different; use_attention: makes the model use the path's attention function, or its
        own."""
        self._model, self._caller, self._dtype, self._sequences = model, caller, dtype, sequences
        self._group, self._use_attention = group, use_attention
        self._routing = RoutingReplay(model)
        self._expected: torch.Tensor | None = None
        self._rounding: Differences | None = None
        self._checked_path: ModelPath | None = None
        """Path that was last compared in float32."""
        self._float32_error: PathError | None = None
        """Error that this comparison found."""

    @torch.inference_mode()
    def check(
        self,
        path: ModelPath,
        found: Differences | None,
        expected: torch.Tensor,
        make_float32_path: Callable[[], ModelPath],
        block_size: int,
    ) -> None:
        """Raises PathError when the differences are more than rounding.

        found: the path's differences from `expected`, the logits of plain `forward()`; None when they could not be
        compared. make_float32_path: makes the same path for float32. Every rank of a group calls this. Only rank 0 has
        whole logits, so it decides for all how far to ask.
        """
        paged, is_tiny = path.name == "paged", self._weight_bytes() <= _ALWAYS_IN_FLOAT32_BYTES
        small = _SMALL_DIFFERENCE[self._dtype] * (1 if paged else _OWN_ATTENTION_FACTOR)
        is_small = found is not None and found.in_every_row <= small and found.largest <= _ONE_ROW_FACTOR * small
        if self._verdict_of_rank_0(found is None or (is_small and not is_tiny)):
            return
        found = found or Differences(torch.zeros(len(expected)))
        may_ask = self._group.world_size == 1 and not is_tiny
        if may_ask and self._is_hidden_by_rounding(found, expected, small, paged):
            return
        if not is_small and self._group.is_leader:
            logger.info(
                f"logits of the {path.name} path differ by {found.largest:.2g} of their spread: comparing in float32"
            )
        try:
            exact, rounding = self._prepare(paged)
        except Exception as error:  # a model's code may raise anything for other dtypes
            if deferred_imports.give_up():
                raise  # the caller retries with real imports
            logger.opt(exception=True).debug("no float32 forward() to compare with")
            reason = f"; float32 cannot show how much of it is rounding ({type(error).__name__}: {error})"
            self._refuse(
                not found.largest <= _ONE_ROW_FACTOR * _OWN_ATTENTION_FACTOR * _SMALL_DIFFERENCE[self._dtype],
                found,
                reason,
            )
            return
        if not self._verdict_of_rank_0(rounding is not None):
            return  # a model whose own logits are not numbers cannot be compared
        rounding = rounding or Differences(torch.zeros(len(exact)))
        self._check_in_float32(path, exact, make_float32_path, block_size)
        self._check_rounding(path, exact, rounding, block_size)

    def _weight_bytes(self) -> int:
        """Size of the weights on this rank."""
        tensors = (*self._model.parameters(), *self._model.buffers())
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())

    def _verdict_of_rank_0(self, verdict: bool) -> bool:
        """Gives rank 0's verdict to every rank."""
        return self._group.minimum(int(verdict or not self._group.is_leader)) == 1

    def _refuse(self, is_wrong: bool, found: Differences, reason: str) -> None:
        if not self._verdict_of_rank_0(not is_wrong):
            raise PathError(
                f"its logits differ from those of plain forward() by {found.largest:.2g} of their spread{reason}"
            )

    def _is_hidden_by_rounding(self, found: Differences, expected: torch.Tensor, small: float, paged: bool) -> bool:
        """Answers the second question: tells whether rounding hides the differences."""
        if not (
            found.in_every_row <= _OWN_ATTENTION_FACTOR * small
            and found.largest <= _OWN_ATTENTION_FACTOR * _ONE_ROW_FACTOR * small
        ):
            return False
        self._use_attention(False)
        with _with_noise(self._model, self._dtype):
            noisy = self_check.whole_logits(self._caller, self._sequences)
        self._use_attention(paged)
        noise = differences(noisy, expected) if noisy.shape == expected.shape else None
        if noise is None or not torch.isfinite(noise.rows).all():
            return False
        logger.debug(f"rounding changes rows by {noise} of the logits' spread")
        usual = noise.rows.quantile(0.25)
        below = found.in_every_row <= _BELOW_NOISE * float(usual)
        return below and bool((found.rows <= _ROUNDING_FACTOR * torch.maximum(noise.rows, usual)).all())

    def _prepare(self, paged: bool) -> tuple[torch.Tensor, Differences | None]:
        """Logits of plain `forward()` in float32, and its error in 16 bits; None when its logits are not numbers."""
        if self._expected is None:
            ranks = self._group.world_size
            self._use_attention(False)
            try:
                with self._in_float32(), self._routing.recording():
                    exact = self_check.plain_logits(self._caller, self._sequences, torch.float32, ranks)
                with self._routing.replaying():
                    rounded = self_check.plain_logits(self._caller, self._sequences, self._dtype, ranks)
            finally:
                self._use_attention(paged)
            self._expected, self._rounding = exact, differences(rounded, exact)
            if self._group.is_leader:
                logger.debug(f"plain forward() is off by {self._rounding} of the logits' spread")
        return self._expected, self._rounding

    def _in_float32(self) -> AbstractContextManager[None]:
        device = self._caller.device
        free = memory.free_cpu_bytes() if device.type == "cpu" else memory.free_cuda_bytes(device)
        return in_float32(self._model, free // self._group.world_size if device.type == "cpu" else free)

    def _check_in_float32(
        self, path: ModelPath, exact: torch.Tensor, make_float32_path: Callable[[], ModelPath], block_size: int
    ) -> None:
        """Answers part a of the third question."""
        if self._checked_path is not path:
            wrong: PathError | None = None
            try:
                with self._in_float32():
                    found = differences(self_check.path_logits(make_float32_path(), self._sequences, block_size), exact)
                logger.debug(f"in float32, rows differ by {found} of the logits' spread")
                if found is not None:
                    found.check_exact()
            except PathError as error:
                wrong = error
            except Exception as error:
                if deferred_imports.give_up():
                    raise
                wrong = PathError(f"it does not run in float32, to be compared ({type(error).__name__}: {error})")
            self._checked_path, self._float32_error = path, wrong
        if not self._verdict_of_rank_0(self._float32_error is None):
            raise (self._float32_error if self._group.is_leader else None) or PathError(
                "rank 0 found that its logits differ from those of plain forward() in float32"
            )

    def _check_rounding(self, path: ModelPath, exact: torch.Tensor, rounding: Differences, block_size: int) -> None:
        """Answers part b of the third question."""
        if path.decode_sizes:
            # A replayed step repeats its own choices, so it is compared with the same operations run one by one.
            replayed = self_check.path_logits(path, self._sequences, block_size)
            with path.without_replays():
                run = self_check.path_logits(path, self._sequences, block_size)
            found = differences(replayed, run)
            if found is not None:
                self._refuse(
                    not found.largest <= _SMALL_DIFFERENCE[self._dtype], found, " when decode steps are replayed"
                )
        with path.without_replays():
            given = self_check.path_logits(path, self._sequences, block_size, self._routing.replaying_for)
        found = differences(given, exact) or Differences(torch.zeros(len(exact)))
        logger.debug(f"it is off by {found} of the logits' spread")
        usual = torch.maximum(rounding.rows, rounding.rows.median()).clamp(min=1e-6)
        times = Differences(found.rows / usual)
        as_rounding = times.in_every_row <= _ROUNDING_FACTOR and times.largest <= _ROUNDING_FACTOR_ONE_ROW
        reason = f" in float32, {times.largest:.2g} times as much as by rounding alone"
        self._refuse(not as_rounding, found, reason)


@contextmanager
def _with_noise(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Changes the results of modules with weights at random, by up to half a step of the dtype."""
    # PyTorch makes generators only after this import, which the start leaves out.
    importlib.import_module("torch._prims.rng_prims")
    generators: dict[torch.device, torch.Generator] = {}
    half_step = torch.finfo(dtype).eps / 2

    def hook(_module: nn.Module, _arguments: Any, out: Any) -> Any:
        if not isinstance(out, torch.Tensor) or not out.is_floating_point():
            return out
        generator = generators.setdefault(out.device, torch.Generator(out.device).manual_seed(0))
        random = torch.rand(out.shape, generator=generator, device=out.device) * 2 - 1
        return (out.float() * (1 + half_step * random)).to(out.dtype)

    owners = [m for m in model.modules() if len(m._parameters) + len(m._buffers) > 0]
    handles = [module.register_forward_hook(hook) for module in owners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
