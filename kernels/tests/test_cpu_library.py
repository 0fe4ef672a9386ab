"""Which of the compiled libraries a CPU gets."""

import pytest
import torch

from gridwork_kernels import cpu_library


@pytest.mark.parametrize(
    ("capability", "has", "lowered", "expected"),
    [
        ("DEFAULT", (), None, None),
        ("AVX2", (), None, "avx2"),
        ("AVX512", (), None, "avx512"),
        ("AVX512", ("vnni",), None, "avx512"),
        ("AVX512", ("bf16", "vnni"), None, "avx512_bf16"),
        ("AVX512", ("bf16", "vnni", "amx"), None, "avx512_bf16"),
        ("AVX512", ("bf16", "vnni", "amx", "allowed"), None, "amx"),
        ("AVX512", ("amx", "allowed"), None, "avx512"),
        ("AVX512", ("bf16", "vnni", "amx", "allowed"), "avx512", "avx512"),
    ],
)
def test_the_widest_instruction_set_that_the_cpu_has_and_may_use(
    capability: str, has: tuple[str, ...], lowered: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    functions = {
        "_is_avx512_bf16_supported": "bf16",
        "_is_vnni_supported": "vnni",
        "_is_amx_tile_supported": "amx",
        "_init_amx": "allowed",
    }
    for function, feature in functions.items():
        monkeypatch.setattr(torch.cpu, function, lambda feature=feature: feature in has)
    if lowered is None:
        monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    else:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", lowered)
    assert cpu_library._instruction_set() == expected
