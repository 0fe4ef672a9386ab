"""How much memory is really free, and what the cache may take of it."""

from pathlib import Path

import torch

_CPU_SHARE = 0.4
"""Of the memory that is free after loading, what the cache takes on a CPU: other programs run there too."""


_GPU_SHARE = 0.95
"""Of a GPU's memory, or the part of it that may be used: the driver, and memory in pieces, take some too."""


def free_cpu_bytes() -> int:
    """What can be allocated without swapping: the machine's available memory, or what the control group leaves."""
    free = _meminfo_available()
    group = Path("/sys/fs/cgroup")
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = (group / limit_file).read_text().strip()
            used = (group / used_file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            free = min(free, max(0, int(limit) - int(used)))
    return free


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def cache_budget_bytes(
    device: torch.device, wish_bytes: int | None, cuda_fraction: float, world_size: int, step_bytes: int = 0
) -> int:
    """Bytes that this rank's part of the cache may take. wish_bytes: over all ranks; step_bytes: on a GPU, what steps
    take beside the cache, and do not hold now."""
    if wish_bytes is not None:
        return wish_bytes // world_size
    if device.type == "cpu":
        return int(free_cpu_bytes() * _CPU_SHARE) // world_size
    total = torch.cuda.mem_get_info(device)[1]
    return gpu_budget_bytes(free_cuda_bytes(device), total, cuda_fraction, step_bytes)


def gpu_budget_bytes(free_bytes: int, total_bytes: int, fraction: float, step_bytes: int) -> int:
    """What a GPU's memory has room for, of the part of it that may be used."""
    return max(0, int(total_bytes * fraction * _GPU_SHARE) - (total_bytes - free_bytes) - step_bytes)


def free_cuda_bytes(device: torch.device) -> int:
    """Free memory of a GPU, what PyTorch keeps for later included."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])
