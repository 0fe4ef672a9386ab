"""Runs all faults, prints the table, and exits with 1 when anything was lost, doubled, wrong or did not recover."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support import models
from support.server import Server

from . import encoders, ends, processes, requests, shards
from .faults import Faults, Row, Scene, run_fault
from .traffic import NUM_TOKENS, PROMPTS
from .trap import Trap

FLAGS = ["--dtype", "float32", "--kv-cache-memory", "32MiB", "--max-concurrent-requests", "48"]
#: Short, so that a hang is noticed within the time of a test.
SHORT_LIMITS = ["--shard-timeout", "4", "--shard-hang-timeout", "8", "--router-hang-timeout", "5"]


class Suite:
    """The models and servers of the faults."""

    def __init__(self, folder: Path, chosen: Callable[[str], bool]) -> None:
        self.folder = folder
        self.chosen = chosen
        self.trap = Trap(folder / "trap")
        self.plain = models.build("llama", folder / "plain")
        self.endless = _without_end(models.build("llama", folder / "endless"))
        self.right = self.trap.right_answers(PROMPTS, NUM_TOKENS)

    def rows(self) -> Iterator[Row]:
        """Runs all faults."""
        trap = ["--model-id", str(self.trap.folder), "--trust-remote-code", *FLAGS]
        yield from self._scene([*trap, *SHORT_LIMITS], processes.FAULTS)
        yield from self._scene([*trap, "--graceful-termination-timeout", "10"], requests.FAULTS)
        split = ["--model-id", str(self.endless), *FLAGS, *SHORT_LIMITS, "--num-shard", "2"]
        yield from self._scene(split, shards.FAULTS)
        if self.chosen("encoder: "):
            model = encoders.tiny_encoder(self.folder / "encoder")
            flags = ["--model-id", str(model), "--task", "embed", "--dtype", "float32", *SHORT_LIMITS]
            with self._server(flags) as server:
                yield from encoders.run(server)
        coded = [*FLAGS, "--trust-remote-code", *SHORT_LIMITS]
        if self.chosen("end: "):
            yield ends.given_up(coded, self.trap, self.folder)
            yield ends.left_over(FLAGS, self.plain, self.folder)
        if self.chosen("log: "):
            yield from ends.unread_log(coded, self.trap, self.right, self.folder)
            yield ends.closed_log(coded, self.trap, self.right, self.folder)
        if self.chosen("secrets: "):
            yield ends.secrets(FLAGS, self.plain)
        if self.chosen("folder: "):
            yield from ends.refused_folders(self.plain, self.folder)
        if self.chosen("template: "):
            yield from ends.endless_templates(FLAGS, self.plain, self.folder)

    def _server(self, flags: list[str]) -> Server:
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return Server(*flags, env={"TMPDIR": str(temporary)})

    def _scene(self, flags: list[str], faults: Faults) -> Iterator[Row]:
        chosen = [fault for fault in faults.all if self.chosen(fault.name)]
        if not chosen:
            return
        with self._server(flags) as server:
            scene = Scene(server, self.trap, self.right, self.folder)
            for fault in chosen:
                yield run_fault(scene, fault)


def _without_end(folder: Path) -> Path:
    """Removes the end-of-sequence tokens, so that no token ends a sequence."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (folder / "generation_config.json").unlink()
    return folder


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hostile", description=__doc__)
    parser.add_argument("--only", default="", help="faults whose names have one of these words, word,word")
    words = [word for word in parser.parse_args().only.split(",") if word]
    began = time.monotonic()
    rows: list[Row] = []
    print(f"{'fault':64} injected  lost  doubled  wrong  recovered after", flush=True)
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        suite = Suite(Path(folder), lambda name: not words or any(word in name for word in words))
        for row in suite.rows():
            rows.append(row)
            _print(row)
    bad = [row for row in rows if not row.is_clean]
    costs = [row.costs for row in rows]
    print(
        f"{'all':64} {len(rows):8} {sum(c.lost for c in costs):5} {sum(c.doubled for c in costs):8} "
        f"{sum(c.wrong for c in costs):6}  "
        f"{len(rows) - len(bad)} of {len(rows)} clean, {time.monotonic() - began:.0f} s"
    )
    return 1 if bad or not rows else 0


def _print(row: Row) -> None:
    costs = row.costs
    recovered = "never" if row.recovered_s is None else f"{row.recovered_s:.1f} s"
    print(f"{row.name:64} {1:8} {costs.lost:5} {costs.doubled:8} {costs.wrong:6}  {recovered}", flush=True)
    for line in [*costs.details[:4], *([row.failure] if row.failure else [])]:
        print(f"    {line[:1500]}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(_main())
