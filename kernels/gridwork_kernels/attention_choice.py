"""Which implementation of paged attention each layer uses: the fastest that can do it, found by trying.

On a GPU several can, each with limits of its own; all of them work on the same cache of slots, so that layers of one
model may use different ones. Whether one really runs, and gives what the reference gives, is found out at the start
with a small computation of the layer's own shape.
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
"""Those for GPUs, the fastest first."""

EVERYWHERE = ("sdpa", "reference")
"""Those that every device can run."""

ALIASES = {"torch": "sdpa"}
"""Other names that users know implementations by."""

_TOLERANCE = 0.05
"""Largest difference from the reference, of values with a standard deviation of 1."""


@dataclass(frozen=True)
class LayerDemands:
    """What a layer asks of an implementation."""

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
    """What is the same for all layers."""

    device: torch.device
    dtype: torch.dtype
    block_size: int = 16


@dataclass(frozen=True)
class Choice:
    """What the layers of a model use."""

    names: list[str]
    """Of each layer's implementation."""
    reasons: list[str]
    """Why faster ones are not used, or not by all layers."""

    @property
    def description(self) -> str:
        """For people to read: the implementation that most layers use, then the others and the reasons."""
        counts = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        first, *rest = sorted(counts, key=lambda name: -counts[name])
        others = [f"{name} for {counts[name]} layer{'s' * (counts[name] > 1)}" for name in rest]
        text = ", ".join([first, *others])
        return f"{text} ({'; '.join(self.reasons)})" if self.reasons else text


def check(name: str, setting: Setting) -> None:
    """Before anything is known of the model. Raises ValueError, with what would work, when `name` cannot be used."""
    choose(name, setting, [LayerDemands()])


def choose(name: str, setting: Setting, layers: Sequence[LayerDemands]) -> Choice:
    """The implementation of each layer. name: what was asked for, or `auto`. A layer that cannot have it gets the next
    slower one that it can have. Raises ValueError, with what would work, when no layer can have what was asked for."""
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
    """Gives every layer the first implementation that it can have; the last one any layer can. Returns their names, and
    the different reasons why others were not taken."""
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
    """Why a layer cannot have an implementation for GPUs; None when it can."""
    if setting.device.type != "cuda":
        return "it needs a GPU"
    return limit(name, setting, layer) or trial(name, setting, layer)


def limit(name: str, setting: Setting, layer: LayerDemands) -> str | None:
    """What of a layer is outside of an implementation's limits, told without running it; None when nothing is."""
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
        except Exception as error:  # a package that was built for another PyTorch, for example
            return str(error)
    if layer.has_slopes and (name == "varlen" or version != 2):
        return "it has no ALiBi"
    if version == 2 and setting.block_size % flash_attention.PAGE:
        return f"--block-size {setting.block_size} is no multiple of {flash_attention.PAGE}"
    return None


@functools.cache
def trial(name: str, setting: Setting, layer: LayerDemands) -> str | None:
    """Why an implementation cannot be used, found by running it and comparing; None when it can."""
    size = setting.block_size
    # A short prompt, a chunk that goes on with one, and a decode; then a step as it is replayed, with a long context.
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
            if not difference < _TOLERANCE:  # NaN above all
                return f"its results differ from the reference by {difference:.2g}"
    except Exception as error:  # whatever a compiler or a driver raises
        return _one_line(error)
    return None


def _problem(
    setting: Setting, layer: LayerDemands, counts: list[int], ends: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, PagedLayout, AttentionOptions]:
    """A step of sequences that compute so many tokens and are so long then, in a cache whose blocks lie in no order."""
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
        # So short that they matter.
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
