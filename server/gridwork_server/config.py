"""The settings of a shard, and how they are read from the launcher's JSON."""

import json
import types
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from gridwork_server import __version__


def _one_of(default: str | None, *names: str) -> Any:
    return field(default=default, metadata={"names": names})


@dataclass(frozen=True)
class ShardConfig:
    """One rank of a shard group. The launcher writes the same fields (`settings/src/shard.rs`)."""

    model_path: Path
    socket: str
    """Path of a unix socket, or `host:port`."""
    rank: int = 0
    world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int | None = None
    """Port at which rank 0 listens for the others, when there is no file."""
    meeting_file: Path | None = None
    """File in which ranks of one machine find each other."""
    device: str = _one_of("cpu", "cpu", "cuda")
    dtype: str = _one_of("auto", "auto", "float32", "bfloat16", "float16")
    model_impl: str = _one_of("auto", "auto", "paged", "batched", "solo")
    task: str = _one_of("auto", "auto", "generate", "embed", "classify", "rerank", "fill-mask")
    """`auto`, or a name of `gridwork_server.model.task.Task`."""
    generation_config: str = "auto"
    """Source of the defaults of requests: `auto` (the model's folder), `none`, or another folder."""
    attention: str = _one_of("auto", "auto", "cpu", "flash-attn", "varlen", "triton", "sdpa", "reference")
    fuse: bool = True
    """True if linear layers may be replaced by faster, equivalent ones."""
    quantize: str | None = _one_of(None, "int8", "int4")
    """A method of `gridwork_kernels.quantized_linear`, for linear layers on CPUs."""
    compile: bool = False
    """True if PyTorch compiles the model, on the paged path."""
    block_size: int = 16
    """Number of tokens in a block of the cache, as the router will request them."""
    cuda_graphs: tuple[int, ...] | None = None
    """Numbers of sequences of the decode steps to record as CUDA graphs. None: the default sizes with one rank, no
    graphs with several."""
    kv_cache_memory_bytes: int | None = None
    cuda_memory_fraction: float = 1.0
    trust_remote_code: bool = False
    code_revision: str | None = None
    """Branch, tag or commit of Python code that the model takes from a repository on the hub."""
    serve_tokenizer: bool = False
    """True if rank 0 tokenizes for the router."""
    cpu_threads: int | None = None
    revision: str | None = None
    otlp_endpoint: str | None = None
    """OpenTelemetry collector (gRPC). None: no traces."""
    otlp_service_name: str = "gridwork.shard"
    log_level: str = _one_of("info", "trace", "debug", "info", "warn", "error")


_ON_THE_COMMAND_LINE = {"rank", "socket"}


class SettingsError(Exception):
    """Settings that this shard cannot read. The message names the field and says what to do."""


def read_settings(text: str, rank: int, socket: str) -> ShardConfig:
    """The configuration of one rank, from the JSON of the launcher.

    Every field must be there: a missing field, an unknown one and one of another type come from a launcher of another
    version.
    Raises SettingsError.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise _error(f"they are not JSON ({error})") from None
    if not isinstance(given, dict):
        raise _error("they are no JSON object")
    kinds = get_type_hints(ShardConfig)
    values: dict[str, Any] = {"rank": rank, "socket": socket}
    for known in fields(ShardConfig):
        if known.name in _ON_THE_COMMAND_LINE:
            continue
        value = given.pop(known.name, MISSING)
        if value is MISSING:
            raise _error(f"missing field `{known.name}`")
        values[known.name] = _converted(known.name, value, kinds[known.name])
        names = known.metadata.get("names")
        if names and value is not None and value not in names:
            raise _error(f"`{known.name}` is {json.dumps(value)}, which is none of {', '.join(names)}")
    for name in given:
        raise _error(f"unknown field `{name}`")
    return ShardConfig(**values)


def _error(what: str) -> SettingsError:
    return SettingsError(
        f"settings: {what}; this program is of version {__version__}, and whatever wrote the settings is probably of "
        "another one; install all programs from one build"
    )


def _converted(name: str, value: Any, kind: Any) -> Any:
    """`value` as the annotation `kind` of the field `name` has it."""
    wrong = _error(f"`{name}` is {json.dumps(value)}, which is not of the type {getattr(kind, '__name__', kind)}")
    if get_origin(kind) in (types.UnionType, tuple):
        options = get_args(kind)
        if get_origin(kind) is tuple:
            if not isinstance(value, list):
                raise wrong
            return tuple(_converted(name, item, options[0]) for item in value)
        if value is None:
            return None
        return _converted(name, value, options[0])
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind:
        raise wrong
    return value
