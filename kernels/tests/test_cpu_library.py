"""The choice of a compiled library for a CPU."""

import pytest
import torch

from gridwork_kernels import cpu_library


@pytest.mark.parametrize(
    ("capability", "has", "vendor", "lowered", "expected"),
    [
        ("DEFAULT", (), "AuthenticAMD", None, None),
        ("AVX2", (), "AuthenticAMD", None, "avx2"),
        ("AVX512", (), "GenuineIntel", None, "avx512"),
        ("AVX512", ("vnni",), "GenuineIntel", None, "avx512_vnni"),
        ("AVX512", ("vnni",), "AuthenticAMD", "avx512", "avx512"),
        ("AVX512", ("bf16", "vnni"), "AuthenticAMD", None, "avx512_bf16"),
        ("AVX512", ("bf16", "vnni"), "GenuineIntel", None, "avx512_vnni"),
        ("AVX512", ("bf16", "vnni", "amx"), "AuthenticAMD", None, "avx512_bf16"),
        ("AVX512", ("bf16", "vnni", "amx"), "GenuineIntel", None, "avx512_vnni"),
        ("AVX512", ("bf16", "vnni", "amx", "allowed"), "GenuineIntel", None, "amx"),
        ("AVX512", ("amx", "allowed"), "GenuineIntel", None, "avx512"),
        ("AVX512", ("bf16", "vnni", "amx", "allowed"), "GenuineIntel", "avx512", "avx512"),
    ],
)
def test_the_fastest_supported_library_is_chosen(
    capability: str,
    has: tuple[str, ...],
    vendor: str,
    lowered: str | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(cpu_library, "_is_of_intel", lambda cpuinfo: vendor == "GenuineIntel")
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
    assert cpu_library.instruction_set() == expected


def test_the_library_for_this_machine_is_built_and_loaded() -> None:
    assert cpu_library.load() == cpu_library.instruction_set()


@pytest.mark.parametrize(("vendor", "intel"), [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_the_vendor_is_read_from_cpuinfo(vendor: str, intel: bool) -> None:
    text = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6\nmodel name\t: GenuineIntel, not\n"
    assert cpu_library._is_of_intel(text) == intel
