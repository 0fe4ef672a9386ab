"""Free memory, and the part of it that the cache may take."""

from pathlib import Path

import torch

_CPU_SHARE = 0.4
"""Share of the memory free after loading that the cache takes on a CPU. Other programs run there too."""


_GPU_SHARE = 0.95
"""Share of a GPU's usable memory that weights, steps and cache take. The driver and fragmentation take some too."""


def free_cpu_bytes() -> int:
    """Bytes that can be allocated without swapping: the machine's available memory, or the rest of the control group's
    limit."""
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
    """Bytes that this rank's part of the cache may take. wish_bytes: for all ranks together; None: a share of the free
    memory; step_bytes: memory that steps take on a GPU beside the cache, and do not hold now."""
    if wish_bytes is not None:
        return wish_bytes // world_size
    if device.type == "cpu":
        return int(free_cpu_bytes() * _CPU_SHARE) // world_size
    total = torch.cuda.mem_get_info(device)[1]
    return gpu_budget_bytes(free_cuda_bytes(device), total, cuda_fraction, step_bytes)


def gpu_budget_bytes(free_bytes: int, total_bytes: int, fraction: float, step_bytes: int) -> int:
    """Bytes for the cache on a GPU. fraction: part of its memory that may be used; step_bytes: see above."""
    return max(0, int(total_bytes * fraction * _GPU_SHARE) - (total_bytes - free_bytes) - step_bytes)


def free_cuda_bytes(device: torch.device) -> int:
    """Free memory of a GPU, after PyTorch has given back what it keeps for later."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])
