"""Generates with every given model, as one rank of a group; test_tensor_parallel starts it.

Arguments: rank, world size, port, a file for the results, a JSON file with a list of jobs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from gridwork_server._proto import shard_pb2 as pb
from gridwork_server.config import ShardConfig
from gridwork_server.errors import ModelError
from gridwork_server.model.loading import load
from gridwork_server.parallel.group import RankGroup
from gridwork_server.step.runner import Runner

from .driver import Driver

LIMITS = pb.WarmupRequest(block_size_tokens=4, max_batch_tokens=64, max_sequences=8, max_total_tokens=100)


def _run(job: dict[str, Any], config: ShardConfig, group: RankGroup) -> dict[str, Any]:
    try:
        runner = Runner(load(config, group), config, group)
    except ModelError as error:
        return {"error": str(error)}
    size = runner.warm_up(LIMITS)
    loaded = runner.loaded
    facts = {
        "num_parameters": loaded.num_parameters,
        "weight_bytes": loaded.weight_bytes,
        "kv_heads": [layer.num_kv_heads for layer in loaded.path.layers.values()],
        "notes": loaded.notes,
    }
    if not group.is_leader:
        while payload := group.broadcast_bytes(None):
            runner.run(pb.Step.FromString(payload))
        return facts

    def run(step: pb.Step) -> pb.StepResult:
        group.broadcast_bytes(step.SerializeToString())
        return runner.run(step)

    driver = Driver(run, size.num_blocks, chunk=7)
    names = [driver.add(prompt, job["count"]) for prompt in job["prompts"]]
    results = driver.finish()
    group.broadcast_bytes(b"")
    return facts | {"tokens": [results[name] for name in names]}


def main(rank: int, world_size: int, port: int, output: Path, jobs: Path) -> None:
    """Runs all jobs."""
    group: RankGroup | None = None
    results = []
    for job in json.loads(jobs.read_text()):
        config = ShardConfig(
            model_path=Path(job["folder"]),
            socket="",
            rank=rank,
            world_size=world_size,
            master_port=port,
            dtype=job["dtype"],
            device=job.get("device", "cpu"),
            kv_cache_memory_bytes=2**24,
        )
        group = group or RankGroup.join(config)
        results.append(_run(job, config, group))
    output.write_text(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
    # Exits as a shard does: threads of a live process group may abort the interpreter's own exit.
    sys.stderr.flush()
    os._exit(0)
