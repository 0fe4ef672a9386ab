"""The ranks of a shard group: what they tell each other besides the model's own all-reduces."""

import datetime
import os
import pickle
from typing import Any

import torch

from gridwork_server.config import ShardConfig

# Ranks wait for the next step for as long as nobody asks for anything; the launcher watches for deaths.
_FOREVER = datetime.timedelta(days=3650)


class RankGroup:
    """This process among `world_size` ones. With one rank nothing is ever sent."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: str = "cpu") -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device

    @staticmethod
    def join(config: ShardConfig) -> "RankGroup":
        """Meets the other ranks at the master address."""
        if config.world_size > 1:
            import torch.distributed as dist

            if config.master_addr in ("127.0.0.1", "localhost"):
                # Gloo would look for an interface by the machine's own name, which containers often cannot resolve.
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            if config.device == "cuda":
                torch.cuda.set_device(config.rank)
            dist.init_process_group(
                # Steps are announced over gloo, on the CPU; the model's own sums go over the device's backend.
                "gloo" if config.device == "cpu" else "cpu:gloo,cuda:nccl",
                init_method=f"tcp://{config.master_addr}:{config.master_port}",
                rank=config.rank,
                world_size=config.world_size,
                timeout=_FOREVER,
            )
        return RankGroup(config.rank, config.world_size, config.device)

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0, which the router talks to."""
        return self.rank == 0

    def broadcast_bytes(self, payload: bytes | None) -> bytes:
        """Rank 0 gives bytes, every rank gets them."""
        if self.world_size == 1:
            return payload or b""
        import torch.distributed as dist

        length = torch.tensor([len(payload) if payload is not None else 0], dtype=torch.int64)
        dist.broadcast(length, src=0)
        if int(length) == 0:
            return b""
        if payload is not None:
            data = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        else:
            data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, src=0)
        return data.numpy().tobytes()

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0 gives a small object, every rank gets it. The ranks are our own processes, so pickle is safe."""
        if self.world_size == 1:
            return value
        return pickle.loads(self.broadcast_bytes(pickle.dumps(value) if self.is_leader else None))

    def broadcast_array(self, array: torch.Tensor) -> torch.Tensor:
        """Every rank gives a CPU tensor of one shape, which becomes rank 0's."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.broadcast(array, src=0)
        return array

    def sum(self, values: list[int]) -> list[int]:
        """Sums integers over the ranks."""
        return self._reduce(values, "SUM")

    def minimum(self, value: int) -> int:
        """Smallest of the ranks' integers."""
        return self._reduce([value], "MIN")[0]

    def _reduce(self, values: list[int], operation: str) -> list[int]:
        if self.world_size == 1:
            return values
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, operation))
        return [int(value) for value in tensor.tolist()]

    def leave(self) -> None:
        """Tears the group down."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()
