"""Copies between the host and the device that nothing waits for."""

import numpy as np
import torch


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same values on a device. On a GPU they go by way of pinned memory, which PyTorch's allocator gives to nobody
    else before the copy has been made; on a CPU they are not copied."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cpu" and isinstance(values, np.ndarray):
        return tensor
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """The same values on the host. From a GPU they come into pinned memory, and are there once what the GPU has been
    asked for so far is done; on a CPU they are not copied."""
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
