"""The contestants: Gridwork's variants in bfloat16, and the peers with the settings that are fastest on this CPU.

All have the same memory for keys and values.
"""

import importlib.metadata
import os
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from suite.machine import this_machine
from suite.models import kv_bytes_per_token
from suite.paths import BENCHMARKS, ROOT
from suite.servers import Contestant

ENVIRONMENTS = ROOT / ".cache/peers"
GRIDWORK = ROOT / "target/release/gridwork"

PEERS: dict[str, tuple[str, ...]] = {
    "vllm": ("vllm-transformers", "vllm-native"),
    "vllm-transformers": ("vllm-transformers",),
    "vllm-native": ("vllm-native",),
    "transformers-serve": ("transformers-serve",),
    "generate": ("generate",),
}
"""Names that PEERS= of `make bench` accepts, and the contestants that each stands for."""

OWN = {
    "gridwork": (),
    "gridwork-no-prefix-cache": ("--disable-prefix-cache",),
    "gridwork-int8": ("--quantize", "int8"),
    "gridwork-speculate": ("--speculate", "8"),
}
"""Gridwork's variants, with the flags of each."""

TRANSFORMERS_PAGE_TOKENS = 256
"""Block size of the cache of `transformers serve`."""


class NotAvailable(RuntimeError):
    """This contestant cannot be measured here; the message gives the reason."""


@dataclass(frozen=True)
class Entry:
    """A contestant of one run, with its version and note for the tables."""

    contestant: Contestant
    version: str
    note: str  # missing libraries, and the dtype unless it is bfloat16
    dtype: str = "bfloat16"


def names(peers: list[str]) -> list[str]:
    """All contestants of a run, Gridwork's variants first."""
    return [*OWN, *dict.fromkeys(name for peer in peers for name in PEERS[peer])]


def entry(name: str, model: Path, kv_gib: int) -> Entry:
    """The command of the contestant for a model folder. Raises `NotAvailable`."""
    if name in OWN:
        return _gridwork(name, model, kv_gib)
    if name == "transformers-serve":
        return _transformers_serve(model, kv_gib)
    if name.startswith("vllm-"):
        return _vllm(name, model, kv_gib)
    raise KeyError(name)


def peer_dtype(flags: Collection[str]) -> str:
    """The dtype of peers on a CPU with these flags. Without AVX-512 their bfloat16 products are emulated and several
    times slower than float32."""
    return "bfloat16" if "avx512f" in flags else "float32"


def _note(missing: list[str], dtype: str) -> str:
    notes = [f"without {', '.join(missing)}"] if missing else []
    notes += ["in float32, faster for it here than bfloat16"] if dtype == "float32" else []
    return " and ".join(notes)


@cache
def _gridwork_help() -> str:
    return subprocess.run([GRIDWORK, "--help"], check=True, capture_output=True, text=True).stdout


def _gridwork(name: str, model: Path, kv_gib: int) -> Entry:
    flags = OWN[name]
    if flags and flags[0] not in _gridwork_help():
        raise NotAvailable(f"this build has no {flags[0]}")
    command = [str(GRIDWORK), "--model-id", str(model), "--dtype", "bfloat16", "--hostname", "127.0.0.1"]
    command += ["--kv-cache-memory", f"{kv_gib}GiB", *flags]
    path = f"{ROOT / 'target/release'}:{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    version = subprocess.run([GRIDWORK, "--version"], check=True, capture_output=True, text=True).stdout.split()[-1]
    return Entry(Contestant(name, command, str(model), {"PATH": path}), version, "")


def _transformers_serve(model: Path, kv_gib: int) -> Entry:
    environment = _environment("transformers-serve")
    dtype = peer_dtype(this_machine().flags)
    blocks = (kv_gib << 30) // (TRANSFORMERS_PAGE_TOKENS * kv_bytes_per_token(model, dtype))
    command = [str(environment / "bin/transformers"), "serve", str(model), "--host", "127.0.0.1"]
    command += ["--continuous-batching", "--attn-implementation", "sdpa", "--dtype", dtype]
    command += ["--cb-num-blocks", str(blocks), "--cb-max-batch-tokens", "2048"]
    contestant = Contestant("transformers-serve", command, str(model), {"PATH": _path(environment)})
    return Entry(contestant, _version(environment, "transformers"), _note([], dtype), dtype)


def _vllm(name: str, model: Path, kv_gib: int) -> Entry:
    environment = _environment("vllm")
    implementation = name.removeprefix("vllm-")
    dtype = peer_dtype(this_machine().flags)
    command = [str(environment / "bin/vllm"), "serve", str(model), "--host", "127.0.0.1", "--dtype", dtype]
    command += ["--max-model-len", "2048"]
    command += ["--model-impl", "vllm" if implementation == "native" else implementation]
    libraries = [environment / "lib/libtcmalloc_minimal.so.4", environment / "lib/libiomp5.so"]
    missing = [library.name for library in libraries if not library.exists()]
    env = {
        "PATH": _path(environment),
        "LD_PRELOAD": ":".join(str(library) for library in libraries if library.exists()),
        # By default vLLM leaves one core to the rest of the system.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        # Keeps compiled code between starts.
        "VLLM_CACHE_ROOT": str(environment / "compiled"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    return Entry(
        Contestant(name, command, str(model), env), _version(environment, "vllm_cpu"), _note(missing, dtype), dtype
    )


def readable(contestant: Contestant) -> str:
    """The command as a user would type it, with its environment variables and without this machine's folders."""
    env = [f"{key}={value}" for key, value in contestant.env.items() if key not in ("PATH", "VLLM_CACHE_ROOT")]
    command = [Path(contestant.command[0]).name, *contestant.command[1:]]
    return " ".join([*env, *command]).replace(f"{ROOT}/", "")


def generate(model: Path) -> Entry:
    """The command of the program that measures `generate()`, which is not a server. Raises `NotAvailable`."""
    environment = _environment("transformers-serve")
    dtype = peer_dtype(this_machine().flags)
    command = [str(environment / "bin/python"), str(BENCHMARKS / "tools/generate_peer.py"), str(model), dtype]
    contestant = Contestant("generate", command, str(model), {"PATH": _path(environment)})
    return Entry(contestant, _version(environment, "transformers"), _note([], dtype), dtype)


def _environment(name: str) -> Path:
    environment = ENVIRONMENTS / name
    if not (environment / ".stamp").exists():
        raise NotAvailable(f"not installed: make .cache/peers/{name}/.stamp")
    return environment


def _path(environment: Path) -> str:
    return f"{environment / 'bin'}:{os.environ['PATH']}"


def _version(environment: Path, package: str) -> str:
    folders = environment.glob("lib/python*/site-packages")
    found = importlib.metadata.distributions(name=package, path=[str(folder) for folder in folders])
    return next((distribution.version for distribution in found), "unknown")
