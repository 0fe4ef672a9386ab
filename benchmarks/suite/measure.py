"""Runs a plan: in each round one server after another, and every sample is kept."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from suite import contestants, results
from suite.load import RequestFailed, Turn, run_load
from suite.machine import memory_gb_s, this_machine
from suite.memory import Peak
from suite.models import Model, kv_bytes_per_token, prepare, read_bytes, weight_bytes
from suite.paths import ROOT
from suite.plan import Plan, wanted_tokens
from suite.results import Sample
from suite.servers import Running, ServerFailed, environment, last_line, running
from suite.workloads import OFFLINE_REQUESTS, Workload

KV_GIB = 4
MEMORY_KV_GIB = 1


class Run:
    """One run of a plan on one model. It fills a part for each workload, and writes all after every turn."""

    def __init__(self, plan: Plan, model: Model, data: Path) -> None:
        self._plan = plan
        self._model = model
        self._folder = prepare(model)
        self._data = data
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        self._parts = {
            workload.name: results.Part(
                workload.name,
                model.name,
                now,
                asdict(this_machine()),
                weight_bytes(self._folder),
                kv_bytes_per_token(self._folder),
                contestants=[results.Contestant(name) for name in plan.contestants(workload)],
                read_bytes=read_bytes(self._folder),
            )
            for workload in plan.of(model)
        }
        self._workloads = plan.of(model)

    def round(self, index: int) -> None:
        gb_s = memory_gb_s()
        for part in self._parts.values():
            part.bandwidth_gb_s.append(gb_s)
        _say(f"round {index + 1} of {self._plan.rounds}, {self._model.name}: memory is read at {gb_s:.1f} GB/s")
        for name in contestants.names(list(self._plan.peers)):
            mine = [workload for workload in self._workloads if name in self._plan.contestants(workload)]
            served = [workload for workload in mine if self._plan.served(workload)]
            if name == "generate":
                self._generate(index, served)
            else:
                self._turn(index, name, served, KV_GIB)
                self._turn(index, name, [workload for workload in mine if workload not in served], MEMORY_KV_GIB)
            results.write(self._parts.values(), self._data)

    def _turn(self, index: int, name: str, workloads: list[Workload], kv_gib: int) -> None:
        """Starts one server, runs these workloads on it, and stops it."""
        records = {workload.name: self._record(workload.name, name) for workload in workloads}
        workloads = [workload for workload in workloads if not records[workload.name].failure]
        if not workloads:
            return
        _say(f"  {name}")
        try:
            entry = contestants.entry(name, self._folder, kv_gib)
            for record in records.values():
                _describe(record, entry)
            with running(entry.contestant) as server:
                _say(f"    first token after {server.ready_s:.1f} s")
                run_load(server.url, entry.contestant.model, [(Turn("Count to ten, slowly.", 16),)] * 4, 4)  # warm
                for workload in workloads:
                    self._measure(index, workload, server, records[workload.name], kv_gib)
        except (contestants.NotAvailable, ServerFailed, RequestFailed, aiohttp.ClientError, OSError) as error:
            _say(f"    {error}")
            for workload in workloads:
                records[workload.name].failure = _shown(str(error))

    def _measure(
        self, index: int, workload: Workload, server: Running, record: results.Contestant, kv_gib: int
    ) -> None:
        if workload.name == "start":
            record.samples.append(Sample(index, 1, ready_s=server.ready_s))
            return
        for level in workload.levels:
            conversations = workload.make(level, self._model.part)
            clients = 1 if workload.name == "context" else level
            try:
                with Peak(server.pid, watch=workload.name == "memory") as peak:
                    load = run_load(server.url, str(self._folder), conversations, clients)
            except (RequestFailed, aiohttp.ClientError, OSError) as error:
                record.failure = _shown(
                    f"{workload.name} at {level}: {type(error).__name__} {error}; {last_line(server.log)}"
                )
                _say(f"    {record.failure}")
                return
            sample = Sample(
                round=index,
                level=level,
                tokens_per_s=load.tokens_per_s,
                ttft_ms=load.ttft_ms,
                ttft_p99_ms=load.ttft_p99_ms,
                tpot_ms=load.tpot_ms,
                prompt_tokens=load.prompt_tokens,
                missing_tokens=wanted_tokens(conversations) - load.num_tokens,
                peak_bytes=peak.bytes or None,
                kv_bytes=kv_gib << 30 if peak.bytes else None,
            )
            record.samples.append(sample)
            figures = f"{load.tokens_per_s:.1f} tok/s, TTFT {load.ttft_ms:.0f} ms, TPOT {load.tpot_ms:.1f} ms"
            _say(f"    {workload.name} {level}: {figures}, {load.seconds:.0f} s")

    def _generate(self, index: int, workloads: list[Workload]) -> None:
        """Runs the batches of `generate()`, which is not a server, in a program of its own."""
        for workload in workloads:
            record = self._record(workload.name, "generate")
            if record.failure:
                continue
            _say("  generate")
            # Static batches do not take all requests at once.
            levels = [level for level in workload.levels if level != OFFLINE_REQUESTS]
            requests = {
                level: [conversation[0] for conversation in workload.make(level, self._model.part)] for level in levels
            }
            try:
                entry = contestants.generate(self._folder)
                _describe(record, entry)
                seconds = static_batches(entry.contestant.command, entry.contestant.env, requests)
            except (contestants.NotAvailable, ServerFailed) as error:
                _say(f"    {error}")
                record.failure = _shown(str(error))
                continue
            for level, spent_s in zip(levels, seconds, strict=True):
                tokens_per_s = sum(request.max_tokens for request in requests[level]) / spent_s
                record.samples.append(Sample(index, level, tokens_per_s=tokens_per_s, missing_tokens=0))
                _say(f"    {workload.name} {level}: {tokens_per_s:.1f} tok/s, {spent_s:.0f} s")

    def _record(self, workload: str, name: str) -> results.Contestant:
        record = self._parts[workload].contestant(name)
        assert record is not None
        return record


def _describe(record: results.Contestant, entry: contestants.Entry) -> None:
    record.version, record.note, record.dtype = entry.version, entry.note, entry.dtype
    record.command = contestants.readable(entry.contestant)


def static_batches(command: list[str], env: dict[str, str], requests: dict[int, list[Turn]]) -> list[float]:
    """Seconds that `generate()` takes for the requests of each batch size. Raises `ServerFailed` when the program
    fails."""
    jobs = [
        {"prompts": [turn.text for turn in turns], "max_tokens": [turn.max_tokens for turn in turns], "batch": batch}
        for batch, turns in requests.items()
    ]
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(
            command,
            input=json.dumps(jobs),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(env),
        )
        if done.returncode != 0:
            raise ServerFailed(f"ended with status {done.returncode}: {last_line(log)}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _shown(failure: str) -> str:
    """The failure for a table: short, in one line, without this machine's folders."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", failure)
    return " ".join(plain.replace(f"{ROOT}/", "").split())[:300]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
