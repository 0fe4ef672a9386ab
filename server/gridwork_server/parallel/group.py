"""The ranks of a shard group and the messages between them, apart from the model's own all-reduces."""

import datetime
import ipaddress
import os
import socket
from typing import Any

import torch

from gridwork_server.config import ShardConfig

# Ranks wait for the next step until a request arrives, however long; the launcher watches for ranks that die.
_FOREVER = datetime.timedelta(days=3650)


class RankGroup:
    """This process as one of `world_size` ranks. With one rank, nothing is sent."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: str = "cpu") -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device

    @staticmethod
    def join(config: ShardConfig) -> "RankGroup":
        """Joins the other ranks by the meeting file, or at the master address."""
        if config.world_size > 1:
            import torch.distributed as dist

            if config.meeting_file is not None or _is_loopback(config.master_addr):
                # Gloo would look up an interface by the machine's host name, which containers often cannot resolve.
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            if config.device == "cuda":
                torch.cuda.set_device(device_of(config))
            dist.init_process_group(
                _backend(config),
                store=_store(config),
                rank=config.rank,
                world_size=config.world_size,
                timeout=_FOREVER,
            )
        return RankGroup(config.rank, config.world_size, config.device)

    @property
    def is_leader(self) -> bool:
        """True for rank 0, which the router talks to."""
        return self.rank == 0

    def broadcast_bytes(self, payload: bytes | None) -> bytes:
        """Sends bytes from rank 0 to every rank. payload: None on the other ranks."""
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

    def announce(self, what: int, payload: bytes = b"") -> None:
        """Announces the next action from rank 0 to the other ranks: a number below 256 and its message."""
        if self.world_size > 1:
            self.broadcast_bytes(bytes([what]) + payload)

    def next_announced(self) -> tuple[int, bytes]:
        """Waits for the next announcement of rank 0."""
        message = self.broadcast_bytes(None)
        return message[0], message[1:]

    def broadcast_array(self, array: torch.Tensor) -> torch.Tensor:
        """Overwrites every rank's CPU tensor, all of one shape, with rank 0's values."""
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
        """Leaves and destroys the process group."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


def device_of(config: ShardConfig) -> torch.device:
    """The device of a rank. Where there are fewer GPUs than ranks, ranks share them: the check of a GPU does so, while
    `service/worker.py` refuses it."""
    if config.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", config.rank % max(1, torch.cuda.device_count()))


def _backend(config: ShardConfig) -> str:
    """Steps are announced over gloo, on the CPU. The model's all-reduces use NCCL, which takes one rank a GPU."""
    shares_gpus = config.world_size > torch.cuda.device_count()
    return "gloo" if config.device == "cpu" or shares_gpus else "cpu:gloo,cuda:nccl"


def _store(config: ShardConfig) -> Any:
    """The store through which ranks find each other. It holds the addresses that ranks connect to, so no other process
    may write to it."""
    import torch.distributed as dist

    if config.meeting_file is not None:
        return dist.FileStore(str(config.meeting_file), config.world_size)
    assert config.master_port is not None, "ranks meet in a file or at a port"
    address = (config.master_addr, config.master_port)
    is_leader = config.rank == 0
    listener = None
    if is_leader:
        # PyTorch's own listener would listen on every address of this machine.
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server(address, family=family, backlog=config.world_size)
    return dist.TCPStore(
        *address,
        config.world_size,
        is_leader,
        timeout=_FOREVER,
        master_listen_fd=listener.detach() if listener else None,
        use_libuv=False,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
