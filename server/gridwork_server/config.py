"""What a shard is started with."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ShardConfig:
    """One rank of a shard group, as the command line describes it."""

    model_path: Path
    socket: str
    """Path of a unix socket, or `host:port`."""
    rank: int = 0
    world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    meeting_file: Path | None = None
    """Where ranks of one machine meet in place of the address."""
    device: str = "cpu"
    dtype: str = "auto"
    model_impl: str = "auto"
    task: str = "auto"
    """What the model is served for: `auto`, or a name of `gridwork_server.model.task.Task`."""
    generation_config: str = "auto"
    """Where defaults of requests come from: `auto` (the model's folder), `none`, or another folder."""
    attention: str = "auto"
    fuse: bool = True
    """Whether linear layers may be replaced by faster, equivalent ones."""
    quantize: str | None = None
    """A method of `gridwork_kernels.quantized_linear`, for linear layers on CPUs."""
    compile: bool = False
    """Whether the model is compiled by PyTorch, on the paged path."""
    block_size: int = 16
    """Tokens in a block of the cache, as the router will ask for them."""
    cuda_graphs: tuple[int, ...] | None = None
    """Sequences of the decode steps that are recorded as CUDA graphs; None: as many as it makes sense with one rank,
    none with several."""
    kv_cache_memory_bytes: int | None = None
    cuda_memory_fraction: float = 1.0
    trust_remote_code: bool = False
    code_revision: str | None = None
    """Branch, tag or commit of Python code that the model takes from a repository on the hub."""
    serve_tokenizer: bool = False
    """Whether rank 0 tokenizes for the router."""
    cpu_threads: int | None = None
    revision: str | None = None


_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str) -> int:
    """`4GiB`, `512 MiB`, `1.5GB` or a plain number of bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"`{text}` is not an amount of memory; write for example 4GiB, 512MiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_sizes(text: str) -> tuple[int, ...]:
    """`1,2,4` as sizes, `0` as none. Raises ValueError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"`{text}` is no list of batch sizes; write for example 1,2,4,8, or 0 for no graphs")
    sizes = tuple(sorted({int(part) for part in parts}))
    if 0 in sizes and len(sizes) > 1:
        raise ValueError(f"`{text}`: 0 stands alone, for no graphs")
    return () if sizes == (0,) else sizes
