"""Asynchronous copies between host and device."""

import numpy as np
import torch


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies values to a device. On a GPU the copy goes through pinned memory, which PyTorch's allocator does not reuse
    before the copy is done. On a CPU nothing is copied."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cpu" and isinstance(values, np.ndarray):
        return tensor
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copies values to the host. From a GPU they arrive in pinned memory, once the GPU has finished the work that is
    queued so far. On a CPU nothing is copied."""
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
