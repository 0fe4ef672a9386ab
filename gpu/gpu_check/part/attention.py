"""Part 2: every attention implementation against the reference, over the shapes of their tests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from attention_problems import DECODES, MIXED, OPTIONS, on_device, options_on, problem
from gridwork_kernels.attention_choice import IMPLEMENTATIONS, ON_GPU, LayerDemands, Setting, limit, trial
from gridwork_kernels.flash_attention import PAGE
from gridwork_kernels.paged_attention import AttentionOptions, PagedLayout
from gridwork_kernels.slot_attention import SlotAttention, reference

from gpu_check.part import interpreter, variants
from gpu_check.part.context import Context, one_line

Chunks = list[tuple[int, int]]

_LONG: Chunks = [(512, 4096), (1, 8192), (300, 300), (1, 1), (64, 16_384), (1, 32_768)]
"""Chunks of prompts, late and early, beside decodes with contexts up to 32k."""
_MANY: Chunks = [(1, 17 + 97 * row) for row in range(64)]
"""A decode of 64 sequences."""
_PLAIN = AttentionOptions(scale=0.25)
_TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.float16: (2**-8, 2**-7), torch.bfloat16: (2**-6, 2**-5)}
"""Relative and absolute difference that rounding explains."""


@dataclass(frozen=True)
class Case:
    """A problem to solve by an implementation and by the reference."""

    group: str
    """Cases of a group are one check."""
    dtype: torch.dtype
    chunks: tuple[tuple[int, int], ...]
    options: AttentionOptions = _PLAIN
    kv_heads: int = 2
    num_heads: int = 6
    sizes: tuple[int, int] = (16, 16)
    block_size: int = 16
    is_fixed: bool = False
    """True for a step in fixed buffers, as decode graphs replay it."""

    @property
    def demands(self) -> LayerDemands:
        """Demands of the layer on an implementation."""
        options = self.options
        return LayerDemands(
            *(self.num_heads, self.kv_heads, *self.sizes, options.window, options.chunk, options.softcap > 0),
            *(options.sinks is not None, options.slopes is not None),
        )

    def __str__(self) -> str:
        kind = ", fixed" if self.is_fixed else ""
        return f"{self.num_heads}/{self.kv_heads} heads of {self.sizes}, blocks of {self.block_size}{kind}"


def run(context: Context) -> None:
    """Compares all implementations."""
    variants.run_all(context, ("sdpa", "triton") if context.tiny else ON_GPU, run_variant, at_once=len(ON_GPU))


def run_variant(context: Context, name: str) -> None:
    """Compares one implementation."""
    if name == "triton" and context.tiny and (reason := interpreter.problem()):
        context.leave_out(f"triton: {reason}")
        return
    if reason := _missing(context, name):
        context.leave_out(f"{name}: {reason}")
        return
    for group, cases in _grouped(_tiny_cases() if context.tiny else _cases()).items():
        title = f"{name}: {group}"
        if context.has_time(title):
            _compare(context, title, name, cases)


def _missing(context: Context, name: str) -> str:
    """The reason why the server would not use an implementation of another package, or nothing. A wrong result is no
    such reason, and Gridwork's own implementations must work."""
    if context.tiny or name not in ("flash-attn", "varlen"):
        return ""
    setting = Setting(context.device, torch.bfloat16, PAGE)
    reason = limit(name, setting, LayerDemands()) or trial(name, setting, LayerDemands()) or ""
    return "" if reason.startswith("its results differ") else reason


def _grouped(cases: Iterator[Case]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        dtype = str(case.dtype).removeprefix("torch.")
        groups.setdefault(f"{case.group}, {dtype}, blocks of {case.block_size}", []).append(case)
    return groups


def _tiny_cases() -> Iterator[Case]:
    """A few cases that Triton's interpreter computes in seconds. It has no bfloat16."""
    yield Case("plain", torch.float32, tuple(DECODES))
    yield Case("plain", torch.float16, tuple(MIXED), kv_heads=1)
    yield Case("all options", torch.float32, tuple(MIXED), OPTIONS["all"], sizes=(20, 28))
    yield Case("decodes in fixed buffers", torch.float32, tuple(DECODES), OPTIONS["window"], is_fixed=True)


def _cases() -> Iterator[Case]:
    """All cases, those of large models first. FlashAttention takes blocks of 256 tokens."""
    for block_size in (16, 256):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            yield from _cases_of(dtype, block_size)


def _cases_of(dtype: torch.dtype, block_size: int) -> Iterator[Case]:
    given = {"dtype": dtype, "block_size": block_size}
    large = given | {"num_heads": 32, "kv_heads": 8, "sizes": (128, 128), "options": AttentionOptions(128**-0.5)}
    if dtype != torch.float32:
        yield Case("long contexts", chunks=tuple(_LONG), **large)  # type: ignore[arg-type]
        yield Case("64 decodes", chunks=tuple(_MANY), is_fixed=True, **large)  # type: ignore[arg-type]
        windowed = large | {"options": AttentionOptions(128**-0.5, window=1024)}
        yield Case("long contexts", chunks=tuple(_LONG), **windowed)  # type: ignore[arg-type]
    for name, options in OPTIONS.items():
        # Options of the tests, with sizes that all implementations have, and with keys narrower than values.
        for sizes in ((64, 64), (16, 32)):
            for chunks in (MIXED, DECODES):
                yield Case(name, chunks=tuple(chunks), options=options, sizes=sizes, **given)  # type: ignore[arg-type]
            yield Case(name, chunks=tuple(DECODES), options=options, sizes=sizes, is_fixed=True, **given)  # type: ignore[arg-type]
    for sizes in ((16, 16), (20, 28), (80, 80), (96, 96), (128, 128), (256, 256), (192, 128), (512, 512)):
        options = AttentionOptions(sizes[0] ** -0.5)
        yield Case("head sizes", chunks=tuple(MIXED), options=options, sizes=sizes, **given)  # type: ignore[arg-type]
    for num_heads, kv_heads in ((6, 1), (6, 3), (6, 6), (71, 1), (64, 8)):
        heads = {"num_heads": num_heads, "kv_heads": kv_heads, "sizes": (64, 64)}
        yield Case("grouped heads", chunks=tuple(MIXED), **given, **heads)  # type: ignore[arg-type]


def _compare(context: Context, title: str, name: str, cases: list[Case]) -> None:
    """Runs the cases of a group that are within the implementation's limits, and reports them as one check."""
    implementation = IMPLEMENTATIONS[name]
    assert isinstance(implementation, SlotAttention)
    worst, problems, reasons, ran = 0.0, [], set(), 0
    for case in cases:
        reason = limit(name, Setting(context.device, case.dtype, case.block_size), case.demands)
        if reason is not None:
            reasons.add(reason)
            continue
        ran += 1
        try:
            worst = max(worst, _difference(implementation.function, case, context.device))
        except Exception as error:  # whatever a compiler or a driver raises
            problems.append(f"{case}: {one_line(error)}")
    if ran:
        detail = f"{ran} cases, largest difference {worst:.2g}"
        context.check(
            title, "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" * (len(problems) > 3)), detail
        )
    else:
        context.leave_out(f"{title}: {', '.join(sorted(reasons))}")


def _difference(function: Callable[..., torch.Tensor], case: Case, device: torch.device) -> float:
    """Largest difference from the reference. Raises AssertionError when it is not within the dtype's rounding. Slots
    that nobody may read hold NaN."""
    given = problem(list(case.chunks), case.kv_heads, case.sizes, case.dtype, case.num_heads, case.block_size)
    query, keys, values, layout = on_device(given, device)
    options = options_on(case.options, device)
    expected = reference(query, keys, values, layout, options)
    layout = _fixed(layout) if case.is_fixed else layout
    out = function(query, keys, values, layout, options)
    assert out.dtype == case.dtype, f"the result is {out.dtype}"
    relative, absolute = _TOLERANCES[case.dtype]
    torch.testing.assert_close(out, expected, rtol=relative, atol=absolute)
    return float((out.float() - expected.float()).abs().max())


def _fixed(layout: PagedLayout) -> PagedLayout:
    """The layout as a replayed step has it: lengths are known on the device only."""
    return replace(layout, is_fixed=True, end=[])
