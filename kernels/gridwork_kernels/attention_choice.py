"""Chooses the implementation of paged attention for each layer: the fastest one that supports it.

On a GPU several implementations share one cache of slots, so that layers of a model may use different ones. Each is
tried at the start on a small problem of the layer's shape, and compared with the reference.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from gridwork_kernels import cpu_attention, flash_attention
from gridwork_kernels.paged_attention import SPARE_BLOCKS, AttentionOptions, PagedAttention, PagedLayout
from gridwork_kernels.slot_attention import SlotAttention, reference
from gridwork_kernels.torch_attention import sdpa


def _triton(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PagedLayout, options: AttentionOptions
) -> torch.Tensor:
    from gridwork_kernels import triton_attention  # imports a compiler

    return triton_attention.attend(query, keys, values, layout, options)


IMPLEMENTATIONS: dict[str, PagedAttention] = {
    "cpu": cpu_attention.CpuAttention(),
    "flash-attn": SlotAttention(flash_attention.flash_attn),
    "varlen": SlotAttention(flash_attention.varlen),
    "triton": SlotAttention(_triton),
    "sdpa": SlotAttention(sdpa),
    "reference": SlotAttention(reference),
}

ON_GPU = ("flash-attn", "varlen", "triton", "sdpa")
"""Implementations for GPUs, in descending order of speed."""

EVERYWHERE = ("sdpa", "reference")
"""Implementations that run on every device."""

ALIASES = {"torch": "sdpa"}
"""Other names of implementations."""

_TOLERANCE = 0.05
"""Maximum difference from the reference, for values with a standard deviation of 1."""


@dataclass(frozen=True)
class LayerDemands:
    """Requirements of a layer."""

    num_heads: int = 4
    num_kv_heads: int = 2
    key_size: int = 64
    value_size: int = 64
    window: int = 0
    chunk: int = 0
    has_softcap: bool = False
    has_sinks: bool = False
    has_slopes: bool = False


@dataclass(frozen=True)
class Setting:
    """Properties that all layers share."""

    device: torch.device
    dtype: torch.dtype
    block_size: int = 16


@dataclass(frozen=True)
class Choice:
    """The implementations of a model's layers."""

    names: list[str]
    """Name of each layer's implementation."""
    reasons: list[str]
    """Reasons why faster ones are not used, or not by all layers."""

    @property
    def description(self) -> str:
        """A text for users: the implementation that most layers use, then the others and the reasons."""
        counts = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        first, *rest = sorted(counts, key=lambda name: -counts[name])
        others = [f"{name} for {counts[name]} layer{'s' * (counts[name] > 1)}" for name in rest]
        text = ", ".join([first, *others])
        return f"{text} ({'; '.join(self.reasons)})" if self.reasons else text


def check(name: str, setting: Setting) -> None:
    """Checks a name before the model is known. Raises ValueError, with an alternative, when it cannot be used."""
    choose(name, setting, [LayerDemands()])


def choose(name: str, setting: Setting, layers: Sequence[LayerDemands]) -> Choice:
    """Chooses each layer's implementation. name: the requested one, or `auto`. A layer that it does not support gets
    the next slower one. Raises ValueError, with an alternative, when the requested one supports no layer."""
    name = ALIASES.get(name, name)
    device, dtype = setting.device, setting.dtype
    if name not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"unknown attention `{name}`; one of auto, {', '.join([*IMPLEMENTATIONS, *ALIASES])}")
    fits_cpu = device.type == "cpu" and cpu_attention.supports(dtype)
    if name == "cpu" and not fits_cpu:
        raise ValueError(
            f"--attention cpu needs an x86-64 CPU with AVX2, and float32, bfloat16 or float16; here: "
            f"{device}, {dtype}; "
            "use --attention sdpa"
        )
    if name == "auto" and device.type != "cuda":
        return Choice(["cpu" if fits_cpu else "sdpa"] * len(layers), [])
    if name not in ("auto", *ON_GPU) or name == "sdpa":
        return Choice([name] * len(layers), [])
    order = ON_GPU if name == "auto" else ON_GPU[ON_GPU.index(name) :]
    names, reasons = assign(order, layers, lambda implementation, layer: why_not(implementation, setting, layer))
    if name != "auto" and name not in names:
        reason = next(iter(reasons)).removeprefix(f"not {name}: ")
        raise ValueError(
            f"--attention {name} cannot be used on {device} in {dtype}: {reason}; use --attention {names[0]}, or auto"
        )
    return Choice(names, reasons)


def assign(
    order: Sequence[str], layers: Sequence[LayerDemands], why_not: Callable[[str, LayerDemands], str | None]
) -> tuple[list[str], list[str]]:
    """Gives every layer the first implementation that supports it; the last one supports any layer. Returns their
    names, and the distinct reasons why others were not chosen."""
    names, reasons = [], []
    for layer in layers:
        for name in order[:-1]:
            reason = why_not(name, layer)
            if reason is None:
                names.append(name)
                break
            reasons.append(f"not {name}: {reason}")
        else:
            names.append(order[-1])
    return names, list(dict.fromkeys(reasons))


def why_not(name: str, setting: Setting, layer: LayerDemands) -> str | None:
    """The reason why an implementation for GPUs cannot be used for a layer, or None."""
    if setting.device.type != "cuda":
        return "it needs a GPU"
    return limit(name, setting, layer) or trial(name, setting, layer)


def limit(name: str, setting: Setting, layer: LayerDemands) -> str | None:
    """The known limit of an implementation that a layer exceeds, or None."""
    if name not in ("flash-attn", "varlen"):
        return None
    if setting.dtype not in (torch.float16, torch.bfloat16):
        return f"it has no {str(setting.dtype).removeprefix('torch.')}"
    if layer.key_size != layer.value_size or layer.key_size % 8 or layer.key_size > 256:
        return f"it has no heads of {layer.key_size} and {layer.value_size}"
    if layer.has_sinks:
        return "it has no attention sinks"
    if layer.chunk:
        return "it has no chunks"
    version = 2
    if name == "varlen":
        if layer.has_softcap:
            return "it does not cap scores"
    else:
        try:
            version = flash_attention.package(torch.cuda.get_device_capability(setting.device)[0]).version
        except Exception as error:  # for example, a package that was built for another PyTorch
            return str(error)
    if layer.has_slopes and (name == "varlen" or version != 2):
        return "it has no ALiBi"
    if version == 2 and setting.block_size % flash_attention.PAGE:
        return f"--block-size {setting.block_size} is no multiple of {flash_attention.PAGE}"
    return None


@functools.cache
def trial(name: str, setting: Setting, layer: LayerDemands) -> str | None:
    """Runs an implementation and compares it with the reference. Returns the reason why it cannot be used, or None."""
    size = setting.block_size
    # A short prompt, a later chunk of a prompt, and a decode; then a replayed step with a long context.
    steps = (([5, 70, 1], [5, size + 73, 2 * size + 3]), ([1, 1, 1], [1, size + 1, 2 * size + 515]))
    try:
        for counts, ends in steps:
            query, keys, values, layout, options = _problem(setting, layer, counts, ends)
            expected = reference(query, keys, values, layout, options)
            if max(counts) == 1:
                layout = replace(layout, is_fixed=True, end=[])
            implementation = IMPLEMENTATIONS[name]
            assert isinstance(implementation, SlotAttention)
            given = implementation.function(query, keys, values, layout, options)
            difference = float((given.float() - expected.float()).abs().max())
            if not difference < _TOLERANCE:  # also for NaN
                return f"its results differ from the reference by {difference:.2g}"
    except Exception as error:  # whatever a compiler or a driver raises
        return _one_line(error)
    return None


def _problem(
    setting: Setting, layer: LayerDemands, counts: list[int], ends: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout, AttentionOptions]:
    """A step in which sequence i computes counts[i] tokens and then has length ends[i]. Blocks are in random order."""
    generator = torch.Generator().manual_seed(0)
    device, size = setting.device, setting.block_size

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, setting.dtype)

    num_blocks = [-(-end // size) for end in ends]
    blocks = iter(torch.randperm(sum(num_blocks), generator=generator).tolist())
    tables = torch.zeros(3, max(num_blocks), dtype=torch.int32)
    for row, count in enumerate(num_blocks):
        tables[row, :count] = torch.tensor([next(blocks) for _ in range(count)])
    lengths = [position + 1 for count, end in zip(counts, ends, strict=True) for position in range(end - count, end)]
    layout = PagedLayout(
        block_tables=tables.to(device),
        sequence=torch.repeat_interleave(torch.arange(3), torch.tensor(counts)).to(device, torch.int32),
        length=torch.tensor(lengths, dtype=torch.int32, device=device),
        slots=torch.zeros(sum(counts), dtype=torch.int64, device=device),
        block_size=size,
        num_tokens=counts,
        end=ends,
        null_slot=sum(num_blocks) * size,
    )
    num_slots = (sum(num_blocks) + SPARE_BLOCKS) * size
    keys, values = (random(num_slots, layer.num_kv_heads, n) for n in (layer.key_size, layer.value_size))
    options = AttentionOptions(
        scale=layer.key_size**-0.5,
        # Blocks are so short that they make a difference.
        window=min(layer.window, 11),
        chunk=min(layer.chunk, 11),
        softcap=2.0 if layer.has_softcap else 0.0,
        sinks=torch.linspace(-1, 1, layer.num_heads, device=device) if layer.has_sinks else None,
        slopes=torch.linspace(0, 0.5, layer.num_heads, device=device) if layer.has_slopes else None,
    )
    return random(sum(counts), layer.num_heads, layer.key_size), keys, values, layout, options


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) < 200 else text[:200] + " …"
