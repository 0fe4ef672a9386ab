"""Finds the launcher, and turns keyword arguments into its flags."""

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from gridwork.errors import EngineDied, InvalidRequest

_OF_THE_PROGRAM = ("help", "version", "env", "parent_link", "port", "hostname", "host")
"""Flags that make no sense for a server inside a program."""

_MIN_CONCURRENT = 256
_PAYLOAD_BYTES = 256 << 20
_SECONDS_TO_END = 5


def find() -> str:
    """Path of the launcher `gridwork`: `$GRIDWORK_BIN`, else that of this installation, else the one in PATH."""
    given = os.environ.get("GRIDWORK_BIN")
    places = [Path(given)] if given else [*_installed(), Path(sys.executable).with_name("gridwork")]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    if not given and (found := shutil.which("gridwork")):
        return found
    tried = given or f"the folder of {sys.executable} and PATH"
    raise EngineDied(
        f"the program `gridwork` was not found in {tried}; install the package gridwork, or set GRIDWORK_BIN"
    )


def _installed() -> list[Path]:
    """The launcher that was installed with this package. A source checkout has none."""
    try:
        files = metadata.files("gridwork") or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())).resolve() for file in files if file.name == "gridwork" and "bin" in file.parts]


def arguments(model: str, options: Mapping[str, Any], typed: Sequence[str] = ()) -> list[str]:
    """The launcher's arguments for a model, keyword arguments of `LLM`, and flags as they were typed. Raises
    InvalidRequest for values that cannot be flags; the launcher itself refuses unknown names."""
    flags: list[str] = []
    for name, value in options.items():
        if name in _OF_THE_PROGRAM:
            raise InvalidRequest(f"`{name}` is not an argument of LLM, whose server has a private socket", field=name)
        flags += _flags(name, value)
    names = typed_names(typed)

    def given(name: str) -> bool:
        return options.get(name) is not None or name in names

    if not given("max_concurrent_requests"):
        running = _first_int(options, "max_batch_size", "max_num_seqs", "max_running_requests") or 0
        flags.append(f"--max-concurrent-requests={max(_MIN_CONCURRENT, 2 * running)}")
    if not given("payload_limit"):
        flags.append(f"--payload-limit={_PAYLOAD_BYTES}")
    if not given("graceful_termination_timeout"):
        flags.append(f"--graceful-termination-timeout={_SECONDS_TO_END}")
    if not given("server_command") and _is_here("gridwork_server") and " " not in sys.executable:
        flags.append(f"--server-command={sys.executable} -m gridwork_server")
    return ["--parent-link", "--json-output", f"--model-id={model}", *flags, *typed]


def _flags(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"{flag}={str(value).lower()}"]
    if isinstance(value, list | tuple):
        return [each for item in value for each in _flags(name, item)]
    if isinstance(value, str | int | float | os.PathLike):
        return [f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}"]
    # torch.float16
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return [f"{flag}={str(value).removeprefix('torch.')}"]
    raise InvalidRequest(
        f"`{name}` is of type {type(value).__name__}; give a text, a number, a boolean, or a list of them", field=name
    )


def typed_names(flags: Sequence[str]) -> set[str]:
    """Names of flags as they were typed, with underscores."""
    return {flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")}


def _first_int(options: Mapping[str, Any], *names: str) -> int | None:
    return next((options[name] for name in names if isinstance(options.get(name), int)), None)


def _is_here(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def refusal(text: str, options: Mapping[str, Any]) -> InvalidRequest:
    """The launcher's message about a flag, told of the keyword argument that it came from."""
    lines = text.strip().splitlines()
    message = "\n".join(lines[: next((at for at, line in enumerate(lines) if line.startswith("Usage:")), len(lines))])
    message = message.removeprefix("error: ").strip()
    names = [name.replace("-", "_") for name in re.findall(r"--([\w-]+)", message)]
    field = next((name for name in names if name in options), names[0] if names else None)
    return InvalidRequest(message, field="model" if field == "model_id" else field)
