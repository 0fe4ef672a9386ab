"""Invalid settings end the launcher before weights are read, with a message that names valid ones."""

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.server import Server

TinyModels = Callable[[str], Path]

CORES = len(os.sched_getaffinity(0))

#: Time limit for errors of the launcher itself, which need no Python.
AT_ONCE_S = 5.0

#: Time limit for errors of the shard, which imports PyTorch on a busy machine.
WITHIN_S = 30.0


def refused(*flags: str | Path, within_s: float = AT_ONCE_S, env: dict[str, str] | None = None) -> str:
    """Starts the launcher, which must fail in time and leave no process; returns its log."""
    server = Server(*flags, env=env)
    server.start()
    try:
        code = server.wait_exit(timeout_s=within_s)
        assert code > 0, server.log_tail()
        server.assert_nothing_survives()
    finally:
        server.kill()
    log = server.log()
    assert "panicked" not in log and "Traceback" not in log, server.log_tail()
    assert "loaded" not in log, server.log_tail()
    return log


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--attention", "flash"), "auto, cpu, flash-attn, varlen, triton, sdpa, reference"),
        (("--dtype", "int3"), "auto, float32, bfloat16, float16"),
        (("--device", "tpu"), "cpu, cuda"),
        (("--model-impl", "fast"), "auto, paged, batched, solo"),
        (("--cpu-threads", "0"), "at least 1"),
        (("--cpu-threads", "-3"), "at least 1"),
        (("--cpu-threads", str(CORES + 1)), f"{CORES} cores that may be used"),
        (("--otlp-endpoint", "https://localhost:4317"), "this build cannot encrypt"),
        (("--validation-workers", "5000"), "1..=4096"),
        (("--max-connections", "4000000000"), "open files"),
        (("--quantize", "gptq"), "int8, int4"),
    ],
)
def test_an_unknown_value_is_refused_with_those_allowed(
    tiny: TinyModels, flags: tuple[str, str], expected: str
) -> None:
    log = refused("--model-id", tiny("llama"), *flags)
    assert expected in " ".join(log.split())
    assert flags[0] in log


def test_a_missing_gpu_is_refused(tiny: TinyModels) -> None:
    log = refused("--model-id", tiny("llama"), "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    assert "no NVIDIA GPU is visible" in log
    assert "--device cpu" in log


def test_attention_incompatible_with_the_device_is_refused(tiny: TinyModels) -> None:
    log = refused("--model-id", tiny("llama"), "--attention", "triton", "--device", "cpu", within_s=WITHIN_S)
    assert "--attention triton cannot be used on cpu" in log
    assert "use --attention sdpa" in log


def test_quantization_incompatible_with_compile_is_refused(tiny: TinyModels) -> None:
    log = refused("--model-id", tiny("llama"), "--quantize", "int8", "--compile")
    assert "is not compatible with --compile" in log


def test_attention_incompatible_with_the_path_is_refused(tiny: TinyModels) -> None:
    flags = ("--attention", "reference", "--model-impl", "batched")
    log = refused("--model-id", tiny("llama"), *flags, within_s=WITHIN_S)
    assert "--attention reference" in log
    assert "--model-impl batched" in log


def test_torch_is_an_alias_of_sdpa(tiny: TinyModels) -> None:
    with Server("--model-id", tiny("llama"), "--attention", "torch") as server:
        server.wait_ready()
        assert "attention sdpa" in server.log()


def test_threads_are_as_given_or_one_a_core(tiny: TinyModels) -> None:
    for flags, threads in (((), CORES), (("--cpu-threads", "1"), 1)):
        with Server("--model-id", tiny("llama"), *flags) as server:
            server.wait_ready()
            assert f"{threads} threads" in server.log()
            (shard,) = server.shards()
            assert isinstance(shard, psutil.Process)
            assert shard.environ()["OMP_NUM_THREADS"] == str(threads)
