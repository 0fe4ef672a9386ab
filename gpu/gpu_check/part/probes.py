"""Features that the code needs of PyTorch, Triton and Transformers. Each is tried, since versions differ."""

import importlib.metadata
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_check.part import interpreter
from gpu_check.part.context import Context, one_line


@dataclass(frozen=True)
class Probe:
    """A feature of a package, and the code that tries it."""

    name: str
    needed_for: str
    try_it: Callable[[torch.device], None]
    """Raises any exception where the feature does not work."""
    is_needed: bool = True
    """False if the server works without it, with something slower in its place."""
    on_cpu: bool = True


class NotHere(Exception):
    """A feature that cannot be tried on this machine. The message says why."""


def report(context: Context, probe: Probe) -> None:
    """Tries a feature and reports it. An optional feature that is missing is a fact, not an error."""
    device = context.device
    if device.type == "cpu" and not probe.on_cpu:
        context.leave_out(f"{probe.name}: needs a GPU")
        return
    try:
        probe.try_it(device)
    except NotHere as error:
        context.leave_out(f"{probe.name}: {error}")
    except Exception as error:
        if probe.is_needed:
            context.check(probe.name, f"{one_line(error)}; needed for {probe.needed_for}")
        else:
            context.leave_out(f"{probe.name}, for {probe.needed_for}: {one_line(error)}")
    else:
        context.check(probe.name, detail=probe.needed_for)


def _requirements(_device: torch.device) -> None:
    """Compares the versions of packages with those that they require of each other. Extras do not count."""
    from packaging.requirements import Requirement

    wrong = []
    for name in ("transformers", "tokenizers", "huggingface-hub", "accelerate", "peft", "safetensors", "torch"):
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            try:
                found = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                wrong.append(f"{name} requires {requirement.name}, which is not installed")
                continue
            if not requirement.specifier.contains(found, prereleases=True):
                wrong.append(f"{name} requires {requirement.name}{requirement.specifier}, not {found}")
    if wrong:
        raise RuntimeError("; ".join(wrong))


def _pinned_copies(device: torch.device) -> None:
    from gridwork_kernels.device_copies import to_device, to_host

    values = torch.arange(1000)
    there = to_device(values, device)
    back = to_host(there)
    torch.cuda.synchronize(device)
    assert torch.equal(back, values), "a copy through pinned memory changed values"


def _cuda_graphs(device: torch.device) -> None:
    from gridwork_server.paths.decode_graphs import CudaGraphRecorder

    value = torch.ones(4, device=device)
    replay = CudaGraphRecorder().record(lambda: value * 3)
    value.fill_(5)
    assert replay().tolist() == [15.0] * 4, "a replay did not read the new input"


def _waiting_is_noticed(device: torch.device) -> None:
    from gridwork_server.paths.decode_graphs import _waiting_is_an_error

    value = torch.ones(4, device=device)
    try:
        with _waiting_is_an_error():
            value.sum().item()
    except RuntimeError:
        return
    raise AssertionError("a step that waits for the GPU is not noticed")


def _trial(name: str, block_size: int) -> Callable[[torch.device], None]:
    def try_it(device: torch.device) -> None:
        from gridwork_kernels.attention_choice import LayerDemands, Setting, limit, trial

        if name == "triton" and device.type == "cpu" and (reason := interpreter.problem()):
            raise NotHere(reason)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        setting = Setting(device, dtype, block_size)
        reason = (limit(name, setting, LayerDemands()) if device.type == "cuda" else None) or trial(
            name, setting, LayerDemands()
        )
        if reason:
            raise RuntimeError(reason)

    return try_it


def _varlen_arguments(_device: torch.device) -> None:
    from torch.nn.attention.varlen import varlen_attn

    known = set(inspect.signature(varlen_attn).parameters)
    missing = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table"} - known
    if missing:
        raise TypeError(f"torch.nn.attention.varlen.varlen_attn lacks {', '.join(sorted(missing))}")


def _store(_device: torch.device) -> None:
    from datetime import timedelta

    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "meeting"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=20))
        try:
            dist.broadcast(torch.ones(1), src=0)
        finally:
            dist.destroy_process_group()


def _paged_llama(device: torch.device) -> None:
    import tests.models as models
    from gridwork_server.config import ShardConfig
    from gridwork_server.model.loading import load
    from gridwork_server.parallel.group import RankGroup

    with tempfile.TemporaryDirectory() as folder:
        config = ShardConfig(models.save("llama", Path(folder)), "", device=device.type, dtype="float32")
        loaded = load(config, RankGroup())
    if loaded.path.name != "paged":
        raise RuntimeError(f"a Llama runs on the {loaded.path.name} path: {loaded.path_reason}")


def _service(_device: torch.device) -> None:
    import gridwork_server.service.grpc_service
    import gridwork_server.service.worker

    assert gridwork_server.service.grpc_service.serve and gridwork_server.service.worker.Worker


PROBES = (
    Probe("packages fit each other", "everything", _requirements, is_needed=False),
    Probe("PyTorch: copies through pinned memory", "steps that do not wait", _pinned_copies, on_cpu=False),
    Probe("PyTorch: CUDA graphs", "decode graphs", _cuda_graphs, is_needed=False, on_cpu=False),
    Probe("PyTorch: set_sync_debug_mode", "decode graphs", _waiting_is_noticed, is_needed=False, on_cpu=False),
    Probe("PyTorch: sdpa on gathered keys", "any layer", _trial("sdpa", 16)),
    Probe("PyTorch: varlen_attn with block tables", "attention `varlen`", _varlen_arguments, is_needed=False),
    Probe("PyTorch: varlen on this device", "attention `varlen`", _trial("varlen", 256), is_needed=False, on_cpu=False),
    Probe("PyTorch: gloo over a file", "several ranks", _store),
    Probe("Triton: the attention kernel", "attention `triton`", _trial("triton", 16)),
    Probe("flash-attn", "attention `flash-attn`", _trial("flash-attn", 256), is_needed=False, on_cpu=False),
    Probe("Transformers: the attention interface", "the paged path", _paged_llama),
    Probe("gRPC and the contract", "the shard", _service),
)
