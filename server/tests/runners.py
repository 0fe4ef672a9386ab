"""Runners over models in folders, and drivers for them."""

from pathlib import Path
from typing import Any

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.step.cache_size import CacheSize
from gridwork_server.step.runner import Runner

from .driver import Driver


class SizedRunner(Runner):
    """A runner that keeps the size of its cache."""

    num_blocks = 0

    def warm_up(self, limits: "pb.WarmupRequest") -> CacheSize:
        size = super().warm_up(limits)
        self.num_blocks = size.num_blocks
        return size


def load_runner(folder: Path, limits: "pb.WarmupRequest | None" = None, **settings: Any) -> SizedRunner:
    """Loads a model in float32. limits: to warm up with."""
    defaults = {"model_path": folder, "socket": "", "dtype": "float32", "kv_cache_memory_bytes": 2**24}
    config, group = ShardConfig(**(defaults | settings)), RankGroup()
    runner = SizedRunner(load(config, group), config, group)
    if limits is not None:
        runner.warm_up(limits)
    return runner


def driver_for(runner: SizedRunner, **settings: Any) -> Driver:
    """Makes a driver with an empty cache."""
    runner.reset()
    return Driver(runner.run, runner.num_blocks, **settings)
