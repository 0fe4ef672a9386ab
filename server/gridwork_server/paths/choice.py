"""Finds the fastest path that a model runs on, by trying the paths in turn."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loguru import logger

from gridwork_server import attention
from gridwork_server.errors import ModelError, PathError
from gridwork_server.lengths.call_lengths import CallLengths
from gridwork_server.paths.base import ModelPath
from gridwork_server.paths.batched import BatchedPath
from gridwork_server.paths.caller import Caller
from gridwork_server.paths.isolation_check import IsolationCheck, find_lengths
from gridwork_server.paths.layer_kinds import keeps_only_states
from gridwork_server.paths.paged import PagedPath
from gridwork_server.paths.recompute import RecomputePath
from gridwork_server.paths.rounding_check import RoundingCheck
from gridwork_server.paths.self_check import (
    compare,
    compare_generated,
    generated_tokens,
    plain_logits,
    sample_tokens,
)
from gridwork_server.paths.seq2seq import Seq2SeqCaller
from gridwork_server.paths.stepwise import StepwisePath
from gridwork_server.startup import deferred_imports
from gridwork_server.text import one_line

if TYPE_CHECKING:
    from gridwork_server.parallel.group import RankGroup


@dataclass(frozen=True)
class Choice:
    """The path that a model runs on."""

    path: ModelPath
    reason: str
    """Reason why no faster path was chosen; empty for the fastest."""
    vocab_size: int
    lengths: CallLengths | None = None
    """Modules of the model that depend on how many tokens are computed together."""


@dataclass(frozen=True)
class _Candidate:
    impl: str
    what: str
    """Description for the log."""
    paged: bool
    odd: bool
    """True if the path is for models that give other tokens with a cache than without, so that it is compared with
    `generate()`."""
    make: Callable[[], ModelPath]
    make_wide: Callable[[], ModelPath]
    """Makes the same path for a model that is computed in float32 for a while."""


def choose(
    model: Any,
    wish: str,
    attention_name: str,
    dtype: torch.dtype,
    device: torch.device,
    group: "RankGroup",
    record: bool = False,
    block_size: int = 16,
    decode_sizes: Sequence[int] = (),
) -> Choice:
    """Tries the paths that `wish` allows (`auto`, `paged`, `batched` or `solo`), fastest first, and compares each with
    plain `forward()`. record, block_size, decode_sizes: see PagedPath. Raises ModelError when no path works."""
    plain_attention = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    caller = Seq2SeqCaller(model, device) if model.config.is_encoder_decoder else Caller(model, device)
    sequences = sample_tokens(_vocab_size(model))
    expected: torch.Tensor | None = None
    own_attention = model.config._attn_implementation == attention.NAME
    reasons: list[str] = []
    may_page = own_attention or (wish in ("auto", "paged") and keeps_only_states(model))
    if not may_page and wish in ("auto", "paged"):
        reasons.append(f"not paged: {type(model).__name__} does not support Transformers' attention interface")
    record = record and group.world_size == 1

    def paged(wide: bool = False) -> ModelPath:
        if wide:
            name = attention_name if attention_name == "reference" else "auto"
            return PagedPath(model, torch.float32, caller.device, name, False, block_size, (), caller.lengths)
        return PagedPath(model, dtype, caller.device, attention_name, record, block_size, decode_sizes, caller.lengths)

    isolation = IsolationCheck(caller, dtype, sequences[0], group)

    def use_attention(of_path: bool) -> None:
        _use_attention(model, attention.NAME if of_path else plain_attention, own_attention)

    rounding = RoundingCheck(model, caller, dtype, sequences, group, use_attention)

    for candidate in _candidates(model, caller, plain_attention, paged if may_page else None):
        if wish not in ("auto", candidate.impl):
            continue

        def attempt(candidate: _Candidate = candidate) -> ModelPath:
            nonlocal expected
            if expected is None:
                use_attention(False)
                caller.lengths = caller.lengths or find_lengths(caller, sequences[0])
                isolation.prepare()
                expected = plain_logits(caller, sequences, dtype, group.world_size)
            use_attention(candidate.paged)
            path = candidate.make()
            if candidate.odd:
                if group.world_size > 1:
                    raise PathError("generate() does not run over several ranks")
                compare_generated(path, generated_tokens(model, sequences, device), sequences)
            else:
                check = functools.partial(
                    rounding.check, path, expected=expected, make_float32_path=candidate.make_wide
                )
                _compare_on_all_ranks(path, expected, sequences, dtype, group, check)
                isolation.check(path)
            return path

        try:
            try:
                path = attempt()
            except (ModelError, PathError):
                raise
            except Exception as error:
                if not deferred_imports.give_up():
                    raise
                logger.warning(f"tried again with all of PyTorch imported: {one_line(error, typed=True)}")
                path = attempt()
        except ModelError:
            raise
        except PathError as error:
            reasons.append(f"not {candidate.what}: {error}")
        except Exception as error:  # a model's own code may raise anything
            if group.world_size > 1:
                raise ModelError(
                    f"{type(model).__name__} cannot run with a part of its heads ({one_line(error, typed=True)}); "
                    "use --num-shard 1"
                ) from error
            logger.opt(exception=True).debug(f"{candidate.what} cannot be used")
            reasons.append(f"not {candidate.what}: {one_line(error, typed=True)}")
        else:
            reason = "; ".join(reasons)
            if reason:
                logger.warning(f"{type(model).__name__} runs on the {path.name} path ({candidate.what}); {reason}")
            assert expected is not None
            return Choice(path, reason, expected.shape[-1], caller.lengths)
    if caller.lengths is not None:
        caller.lengths.remove()
    advice = "use --model-impl auto" if wish != "auto" else "use another model"
    raise ModelError(f"{type(model).__name__} cannot be served: {'; '.join(reasons)}; {advice}")


_Check = Callable[..., None]
"""Called with the differences, `found`, and the block size; see RoundingCheck."""


def _compare_on_all_ranks(
    path: ModelPath,
    expected: torch.Tensor,
    sequences: list[np.ndarray],
    dtype: torch.dtype,
    group: "RankGroup",
    check: _Check,
) -> None:
    """Compares a path with plain `forward()`. Rank 0, which alone has whole logits, decides. Raises PathError on all
    ranks."""
    found: PathError | None = None
    try:
        _compare(path, expected, sequences, dtype, check)
    except PathError as error:
        found = error if group.is_leader else None
    if group.minimum(0 if found else 1) == 0:
        raise found or PathError("rank 0 found that its logits differ from those of plain forward()")


def _compare(
    path: ModelPath,
    expected: torch.Tensor,
    sequences: list[np.ndarray],
    dtype: torch.dtype,
    check: _Check,
) -> None:
    """Compares a path with plain `forward()`, and gives up its shortcuts one by one while they differ or fail. Raises
    PathError when plain steps of the model's own code differ too."""
    block_size = path.check_block_size
    while True:
        try:
            differences = compare(path, expected, sequences, dtype, block_size)
            if dtype != torch.float32:
                check(found=differences, block_size=block_size)
            return
        except Exception as error:  # an operation may raise anything for arguments that were recorded wrongly
            shortcut = path.give_up_shortcut(one_line(error, typed=True))
            if shortcut is None:
                raise
            logger.warning(f"{shortcut} cannot be used: {one_line(error, typed=True)}")


def _candidates(
    model: Any,
    caller: Caller | Seq2SeqCaller,
    plain: str,
    paged: Callable[..., ModelPath] | None,
) -> Iterator[_Candidate]:
    if paged is not None:
        yield _Candidate("paged", "paged", True, False, paged, functools.partial(paged, wide=True))
    for impl, cohorts, what in (
        ("batched", "padded", "batched with padding"),
        ("batched", "equal", "batched by equal length"),
        ("solo", "single", "solo with its cache"),
    ):
        make = functools.partial(BatchedPath, caller, plain, cohorts)
        yield _Candidate(impl, what, False, False, make, make)
    recompute = "solo, computing everything anew for every token"
    stepwise = functools.partial(StepwisePath, model, caller.device, plain, _vocab_size(model))
    yield _Candidate("solo", "solo as generate() does it", False, True, stepwise, stepwise)
    anew = functools.partial(RecomputePath, caller, plain)
    yield _Candidate("solo", recompute, False, True, anew, anew)
    yield _Candidate("solo", recompute, False, False, anew, anew)


def _use_attention(model: Any, name: str, own_attention: bool) -> None:
    if own_attention:
        model.set_attn_implementation(name)


def _vocab_size(model: Any) -> int:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    size = getattr(head, "out_features", None)
    return int(size or model.config.get_text_config().vocab_size)
