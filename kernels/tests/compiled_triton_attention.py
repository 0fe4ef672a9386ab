"""The Triton kernels go through Triton's compiler and NVIDIA's assembler, which need no GPU."""

from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gridwork_kernels import triton_attention


def compiled(kernel: Any, compute_capability: int, pointers: dict[str, str], constants: dict[str, Any]) -> Any:
    """pointers: of the arguments that are not integers, their types; constants: values known at compile time."""
    signature = {name: pointers.get(name, "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", compute_capability, 32))


@pytest.mark.parametrize(
    ("compute_capability", "dtype", "rows", "size", "splits", "features"),
    [
        (80, "bf16", 64, 128, 1, False),
        (90, "bf16", 64, 128, 1, False),
        (90, "bf16", 16, 128, 8, False),
        (90, "bf16", 16, 256, 1, False),
        (90, "fp32", 16, 64, 4, True),
    ],
)
def test_attention_is_compiled(
    compute_capability: int, dtype: str, rows: int, size: int, splits: int, features: bool
) -> None:
    values, numbers = ("query", "keys", "values", "out"), ("scale", "softcap")
    floats, integers = ("parts", "part_scales", "sinks", "slopes"), ("tables", "length", "tile_token", "tile_count")
    pointers = dict.fromkeys(values, f"*{dtype}") | dict.fromkeys(numbers, "fp32") | dict.fromkeys(floats, "*fp32")
    pointers |= dict.fromkeys((*integers, "tile_sequence"), "*i32")
    shape = {"kv_heads": 8, "group": 4, "key_size": size, "value_size": size, "key_lanes": size, "value_lanes": size}
    limits = {"block_size": 16, "rows": rows, "piece": triton_attention._KEYS, "splits": splits}
    given = dict.fromkeys(("has_softcap", "has_sinks", "has_slopes"), features)
    kernel = compiled(triton_attention._attend, compute_capability, pointers, shape | limits | given)
    assert kernel.asm["cubin"]
    assert kernel.metadata.shared <= 99 * 1024, "shared memory of a block on any GPU since Ampere"


@pytest.mark.parametrize(("splits", "has_sinks"), [(2, False), (triton_attention._MOST_SPLITS, True)])
def test_merging_is_compiled(splits: int, has_sinks: bool) -> None:
    pointers = {"parts": "*fp32", "part_scales": "*fp32", "out": "*bf16", "sinks": "*fp32"}
    constants = {"num_heads": 32, "value_size": 80, "value_lanes": 128, "has_sinks": has_sinks, "splits": splits}
    assert compiled(triton_attention._merge, 90, pointers, constants).asm["cubin"]
