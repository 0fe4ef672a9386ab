"""How much memory is really free, and what the cache may take of it."""

from pathlib import Path

import torch

_CPU_SHARE = 0.4
"""Of the memory that is free after loading, what the cache takes on a CPU: other programs run there too."""


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


def cache_budget_bytes(device: torch.device, wish_bytes: int | None, cuda_fraction: float, world_size: int) -> int:
    """Bytes that this rank's part of the cache may take. wish_bytes: over all ranks."""
    if wish_bytes is not None:
        return wish_bytes // world_size
    if device.type == "cpu":
        return int(free_cpu_bytes() * _CPU_SHARE) // world_size
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(total * cuda_fraction * 0.95) - (total - free))
