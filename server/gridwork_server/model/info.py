"""The part of the contract's `InfoResponse` that generators and encoders have in common."""

from typing import Any, Protocol

import torch

from gridwork_server import __version__
from gridwork_server._proto import shard_pb2 as pb


class Loaded(Protocol):
    """A loaded model of any task."""

    @property
    def config(self) -> Any: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...


def common_info(loaded: Loaded, world_size: int = 1) -> "pb.InfoResponse":
    """Describes versions, model and device."""
    import transformers

    device = str(loaded.device)
    if loaded.device.type == "cuda":
        device = f"{device} ({torch.cuda.get_device_name(loaded.device)})"
    return pb.InfoResponse(
        protocol_version=pb.PROTOCOL_VERSION,
        shard_version=__version__,
        model_type=loaded.config.model_type,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=device,
        vocab_size=loaded.vocab_size,
        num_parameters=loaded.num_parameters,
        weight_bytes=loaded.weight_bytes,
        world_size=world_size,
        transformers_version=transformers.__version__,
        torch_version=torch.__version__,
    )
