"""The choice of implementations and its reasons, as far as it can be tested without a GPU."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gridwork_kernels import attention_choice, cpu_attention, flash_attention
from gridwork_kernels.attention_choice import ON_GPU, Choice, LayerDemands, Setting, assign, check, choose, limit, trial
from gridwork_kernels.slot_attention import SlotAttention

CPU = Setting(torch.device("cpu"), torch.float32)
GPU = Setting(torch.device("cuda"), torch.bfloat16, block_size=256)
PLAIN = LayerDemands()


def test_an_implementation_is_chosen_by_what_can_run() -> None:
    fits = cpu_attention.supports(torch.float32)
    assert choose("auto", CPU, [PLAIN]).names == ["cpu" if fits else "sdpa"]
    assert choose("auto", replace(CPU, dtype=torch.float64), [PLAIN]).names == ["sdpa"]
    assert choose("torch", CPU, [PLAIN]).names == ["sdpa"]
    assert choose("reference", CPU, [PLAIN, PLAIN]).names == ["reference", "reference"]
    for name in ("flash-attn", "varlen", "triton"):
        with pytest.raises(ValueError, match=rf"--attention {name} .*needs a GPU; use --attention sdpa"):
            check(name, CPU)
    with pytest.raises(ValueError, match="--attention sdpa"):
        check("cpu", replace(CPU, dtype=torch.float64))
    with pytest.raises(ValueError, match="unknown attention `flash`"):
        check("flash", CPU)


def test_an_unsupported_layer_gets_the_next_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_attention, "package", lambda major: SimpleNamespace(version=2))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention_choice, "trial", lambda *_: None)
    sinks, capped = LayerDemands(has_sinks=True), LayerDemands(has_softcap=True)
    chosen = choose("auto", GPU, [PLAIN, sinks, PLAIN, capped])
    assert chosen.names == ["flash-attn", "triton", "flash-attn", "flash-attn"]
    assert chosen.description == (
        "flash-attn, triton for 1 layer (not flash-attn: it has no attention sinks; "
        "not varlen: it has no attention sinks)"
    )
    assert choose("varlen", GPU, [PLAIN, capped]).names == ["varlen", "triton"]
    assert choose("triton", GPU, [PLAIN, sinks]) == Choice(["triton", "triton"], [])
    with pytest.raises(ValueError, match=r"varlen cannot be used on cuda .*: it does not cap scores; use .* triton"):
        choose("varlen", GPU, [capped])
    small = choose("auto", replace(GPU, block_size=16), [PLAIN])
    assert small.names == ["triton"]
    assert "--block-size 16 is no multiple of 256" in small.description


def test_an_implementation_that_fails_its_trial_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "limit", lambda *_: None)
    failing = {"flash-attn": "RuntimeError: no kernel image", "varlen": "its results differ", "triton": "no compiler"}
    monkeypatch.setattr(attention_choice, "trial", lambda name, *_: failing.get(name))
    chosen = choose("auto", GPU, [PLAIN])
    assert chosen.names == ["sdpa"]
    assert chosen.reasons == [f"not {name}: {reason}" for name, reason in failing.items()]


def test_the_last_implementation_supports_every_layer() -> None:
    names, reasons = assign(("a", "b"), [PLAIN, replace(PLAIN, chunk=3)], lambda name, layer: "no chunks")
    assert names == ["b", "b"]
    assert reasons == ["not a: no chunks"]


@pytest.mark.parametrize(
    ("layer", "setting", "package", "by_package", "by_pytorch"),
    [
        (PLAIN, GPU, 2, None, None),
        (LayerDemands(window=5), GPU, 2, None, None),
        (PLAIN, replace(GPU, dtype=torch.float32), 2, "it has no float32", "it has no float32"),
        (LayerDemands(value_size=32), GPU, 2, "it has no heads of 64 and 32", "it has no heads of 64 and 32"),
        (LayerDemands(key_size=512, value_size=512), GPU, 3, "it has no heads of 512", "it has no heads of 512"),
        (LayerDemands(chunk=8), GPU, 3, "it has no chunks", "it has no chunks"),
        (LayerDemands(has_softcap=True), GPU, 2, None, "it does not cap scores"),
        (LayerDemands(has_slopes=True), GPU, 2, None, "it has no ALiBi"),
        (LayerDemands(has_slopes=True), GPU, 3, "it has no ALiBi", "it has no ALiBi"),
        (PLAIN, replace(GPU, block_size=16), 3, None, "no multiple of 256"),
    ],
)
def test_limits_are_known_without_trying(
    layer: LayerDemands,
    setting: Setting,
    package: int,
    by_package: str | None,
    by_pytorch: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flash_attention, "package", lambda major: SimpleNamespace(version=package))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name, expected in (("flash-attn", by_package), ("varlen", by_pytorch)):
        reason = limit(name, setting, layer)
        assert (reason is None) == (expected is None)
        assert reason is None or expected is None or expected in reason
    assert limit("triton", setting, layer) is None


def test_a_missing_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setattr(flash_attention.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    flash_attention.package.cache_clear()
    assert limit("flash-attn", GPU, PLAIN) == "the package flash-attn is not installed"


@pytest.mark.parametrize("block_size", [4, 16, 256])
@pytest.mark.parametrize(
    "layer",
    [
        PLAIN,
        LayerDemands(window=100),
        LayerDemands(num_heads=6, num_kv_heads=1, key_size=24, value_size=16, has_softcap=True, has_sinks=True),
        LayerDemands(chunk=4096, has_slopes=True),
    ],
    ids=["plain", "window", "softcap and sinks", "chunks and slopes"],
)
def test_a_trial_finds_wrong_results(layer: LayerDemands, block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = replace(CPU, block_size=block_size)
    assert trial("sdpa", setting, layer) is None
    if layer.window:
        right = attention_choice.IMPLEMENTATIONS["sdpa"]
        assert isinstance(right, SlotAttention)
        off_by_one = SlotAttention(lambda *p: right.function(*p[:4], replace(p[4], window=p[4].window + 1)))
        monkeypatch.setitem(attention_choice.IMPLEMENTATIONS, "wrong", off_by_one)
        assert "differ from the reference" in str(trial("wrong", setting, layer))
    broken = SlotAttention(lambda *problem: torch.ones(1) / torch.zeros(2, 3) @ torch.ones(1))
    monkeypatch.setitem(attention_choice.IMPLEMENTATIONS, "broken", broken)
    assert str(trial("broken", setting, layer)).startswith("RuntimeError: ")
    trial.cache_clear()


def test_all_names_are_implementations() -> None:
    assert set(ON_GPU) < set(attention_choice.IMPLEMENTATIONS)
