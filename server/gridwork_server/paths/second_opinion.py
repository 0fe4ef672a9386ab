"""Tells errors of a path from rounding, in 16 bits.

In float32 a path is right when its logits are those of plain `forward()`. In 16 bits, two right computations differ
too: in every row by what rounding changes, and in some rows by much more, where two experts' scores are nearly equal
and rounding decides which of them computes a token. No fixed bound tells this from an error. So there are three
questions, of which the next is asked only when the one before leaves a doubt:

1. **Are the differences small?** Smaller than what any model of some depth rounds by. Takes nothing besides the two
   computations that are compared. Small models, with which the third question takes no time, are always asked that.
2. **Does rounding change as much?** Plain `forward()` once more, with the results of every module changed at random by
   as much as they are rounded. Where the path differs clearly less, an error could not be told from rounding by
   anybody. Experts chosen otherwise are left to the third question.
3. **Is the path right in float32, and does it round in 16 bits as `forward()` does?**

   a) The path and `forward()` are computed in float32 with the model's own weights (`float32_forward`). Both must give
      the same logits, to the bound that models in float32 are held to: a mask, a position, a rotary embedding, a block
      or a window that is wrong shows there, however much the model's 16 bits hide.
   b) The path in 16 bits, as it will run, is compared with that float32 `forward()`, beside plain `forward()` in 16
      bits. What is chosen, experts above all, is pinned in both to what was chosen in float32 (`pinned_choices`): what
      is left is rounding, as much in the one as in the other, and a path that is off by more has an error that 16 bits
      alone have, in a kernel for instance.

A float32 copy of all weights is made where memory allows, else of one module at a time.
"""

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
from gridwork_server.paths.pinned_choices import PinnedChoices
from gridwork_server.paths.self_check import Differences, differences
from gridwork_server.startup import deferred_imports

if TYPE_CHECKING:
    from gridwork_server.parallel.group import RankGroup
    from gridwork_server.paths.caller import Caller
    from gridwork_server.paths.seq2seq import Seq2SeqCaller

_SMALL = {torch.bfloat16: 0.02, torch.float16: 0.0025}
"""Differences that need no further question, in rows that an error would reach, as a share of the logits' spread."""

_ASKED_ALWAYS_BYTES = 2**26
"""Weights of models that are compared with float32 whatever the differences."""

_ONE_ROW = 2.5
"""How many times as much any one row may differ by."""

_OWN_CODE = 3
"""How many times as much a path may differ by that runs the model's own attention over the model's own cache: models
with recurrent state compute a prompt by another algorithm than a decode."""

_BELOW_NOISE = 0.8
"""Differences that rounding hides, as a share of what it changes."""

_AS_ROUNDING = 2.0
"""Largest error of rows that an error would reach, as a multiple of what plain `forward()` has in such a row, or in
most rows. Right paths of all types of Transformers were seen to have up to 1.6 times as much in any row."""

_AS_ROUNDING_ONE_ROW = 4.0
"""The same of any one row: models that round by much do so by very different amounts from row to row."""


class SecondOpinion:
    """What is known about one model's rounding."""

    def __init__(
        self,
        model: Any,
        caller: "Caller | Seq2SeqCaller",
        dtype: torch.dtype,
        sequences: list[np.ndarray],
        group: "RankGroup",
        use_attention: Callable[[bool], None],
    ) -> None:
        """sequences: of tokens of which no two are the same; use_attention: makes the model use the path's attention
        function, or its own."""
        self._model, self._caller, self._dtype, self._sequences = model, caller, dtype, sequences
        self._group, self._use_attention = group, use_attention
        self._choices = PinnedChoices(model)
        self._exact: torch.Tensor | None = None
        self._rounding: Differences | None = None
        self._judged: ModelPath | None = None
        """The path that was compared in float32 last."""
        self._wrong: PathError | None = None
        """What is wrong with it."""

    @torch.inference_mode()
    def judge(
        self,
        path: ModelPath,
        found: Differences | None,
        expected: torch.Tensor,
        twin: Callable[[], ModelPath],
        block_size: int,
    ) -> None:
        """Raises PathError when the differences are no rounding. found: the path's, from `expected`, the logits of
        plain `forward()`; None where nothing can be told; twin: makes the same path for float32. Every rank of a group
        calls this, and rank 0, which alone has whole logits, decides for all how far to ask."""
        paged, is_tiny = path.name == "paged", self._weight_bytes() <= _ASKED_ALWAYS_BYTES
        small = _SMALL[self._dtype] * (1 if paged else _OWN_CODE)
        is_small = found is not None and found.in_all <= small and found.largest <= _ONE_ROW * small
        if self._all(found is None or (is_small and not is_tiny)):
            return
        found = found or Differences(torch.zeros(len(expected)))
        may_ask = self._group.world_size == 1 and not is_tiny
        if may_ask and self._is_hidden(found, expected, small, paged):
            return
        if not is_small and self._group.is_leader:
            logger.info(f"logits of the {path.name} path differ by {found.largest:.2g} of their spread: asking float32")
        try:
            exact, rounding = self._prepare(paged)
        except Exception as error:  # whatever a model's code makes of other types
            if deferred_imports.give_up():
                raise  # the caller tries again
            logger.opt(exception=True).debug("no float32 forward() to compare with")
            reason = f"; float32 does not tell how much of it is rounding ({type(error).__name__}: {error})"
            self._refuse(not found.largest <= _ONE_ROW * _OWN_CODE * _SMALL[self._dtype], found, reason)
            return
        if not self._all(rounding is not None):
            return  # nothing can be told from a model whose own answer is no number
        rounding = rounding or Differences(torch.zeros(len(exact)))
        self._check_twin(path, exact, twin, block_size)
        self._check_rounding(path, exact, rounding, block_size)

    def _weight_bytes(self) -> int:
        """On this rank."""
        tensors = (*self._model.parameters(), *self._model.buffers())
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())

    def _all(self, verdict: bool) -> bool:
        """Rank 0's verdict, on every rank."""
        return self._group.minimum(int(verdict or not self._group.is_leader)) == 1

    def _refuse(self, is_wrong: bool, found: Differences, reason: str) -> None:
        if not self._all(not is_wrong):
            raise PathError(
                f"its logits differ from those of plain forward() by {found.largest:.2g} of their spread{reason}"
            )

    def _is_hidden(self, found: Differences, expected: torch.Tensor, small: float, paged: bool) -> bool:
        """The second question."""
        if not (found.in_all <= _OWN_CODE * small and found.largest <= _OWN_CODE * _ONE_ROW * small):
            return False
        self._use_attention(False)
        with _shaken(self._model, self._dtype):
            shaken = self_check.whole_logits(self._caller, self._sequences)
        self._use_attention(paged)
        noise = differences(shaken, expected) if shaken.shape == expected.shape else None
        if noise is None or not torch.isfinite(noise.rows).all():
            return False
        logger.debug(f"rounding changes rows by {noise} of the logits' spread")
        usual = noise.rows.quantile(0.25)
        below = found.in_all <= _BELOW_NOISE * float(usual)
        return below and bool((found.rows <= _AS_ROUNDING * torch.maximum(noise.rows, usual)).all())

    def _prepare(self, paged: bool) -> tuple[torch.Tensor, Differences | None]:
        """Logits of plain `forward()` in float32, and the error that it has in 16 bits; None where these are no
        numbers."""
        if self._exact is None:
            ranks = self._group.world_size
            self._use_attention(False)
            try:
                with self._wide(), self._choices.noting():
                    exact = self_check.plain_logits(self._caller, self._sequences, torch.float32, ranks)
                with self._choices.pinned():
                    rounded = self_check.plain_logits(self._caller, self._sequences, self._dtype, ranks)
            finally:
                self._use_attention(paged)
            self._exact, self._rounding = exact, differences(rounded, exact)
            if self._group.is_leader:
                logger.debug(f"plain forward() is off by {self._rounding} of the logits' spread")
        return self._exact, self._rounding

    def _wide(self) -> AbstractContextManager[None]:
        device = self._caller.device
        free = memory.free_cpu_bytes() if device.type == "cpu" else memory.free_cuda_bytes(device)
        return in_float32(self._model, free // self._group.world_size if device.type == "cpu" else free)

    def _check_twin(self, path: ModelPath, exact: torch.Tensor, twin: Callable[[], ModelPath], block_size: int) -> None:
        """The first part of the third question."""
        if self._judged is not path:
            wrong: PathError | None = None
            try:
                with self._wide():
                    found = differences(self_check.path_logits(twin(), self._sequences, block_size), exact)
                logger.debug(f"in float32, rows differ by {found} of the logits' spread")
                if found is not None:
                    found.check_exact()
            except PathError as error:
                wrong = error
            except Exception as error:
                if deferred_imports.give_up():
                    raise
                wrong = PathError(f"it does not run in float32, to be compared ({type(error).__name__}: {error})")
            self._judged, self._wrong = path, wrong
        if not self._all(self._wrong is None):
            raise (self._wrong if self._group.is_leader else None) or PathError(
                "rank 0 found that its logits differ from those of plain forward() in float32"
            )

    def _check_rounding(self, path: ModelPath, exact: torch.Tensor, rounding: Differences, block_size: int) -> None:
        """The second part of the third question."""
        if path.decode_sizes:
            # What is replayed chooses as it did: it is compared with the same operations as they are run one by one.
            replayed = self_check.path_logits(path, self._sequences, block_size)
            with path.without_replays():
                run = self_check.path_logits(path, self._sequences, block_size)
            found = differences(replayed, run)
            if found is not None:
                self._refuse(not found.largest <= _SMALL[self._dtype], found, " when decode steps are replayed")
        with path.without_replays():
            given = self_check.path_logits(path, self._sequences, block_size, self._choices.pinned_for)
        found = differences(given, exact) or Differences(torch.zeros(len(exact)))
        logger.debug(f"it is off by {found} of the logits' spread")
        usual = torch.maximum(rounding.rows, rounding.rows.median()).clamp(min=1e-6)
        times = Differences(found.rows / usual)
        as_rounding = times.in_all <= _AS_ROUNDING and times.largest <= _AS_ROUNDING_ONE_ROW
        reason = f" in float32, {times.largest:.2g} times as much as by rounding alone"
        self._refuse(not as_rounding, found, reason)


@contextmanager
def _shaken(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Changes what modules with weights give, at random, by up to half a step of the type."""
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
