"""The command line of `gridwork-server`."""

import argparse
import os
import sys
from pathlib import Path

from gridwork_server import __version__, logs
from gridwork_server.config import SettingsError, read_settings
from gridwork_server.prepare.cli import register as register_prepare


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand and returns the exit code."""
    parser = argparse.ArgumentParser(prog="gridwork-server", description="The shard of Gridwork, and its tools.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--log-level", default=os.environ.get("LOG_LEVEL", "info"), help=argparse.SUPPRESS)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    register_prepare(subparsers)
    _register_serve(subparsers)
    args = parser.parse_args(arguments)
    logs.set_up(args.log_level)
    return int(args.run(args))


def _register_serve(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = subparsers.add_parser(
        "serve",
        help="run a shard",
        description="Runs one rank of a shard group. `gridwork` starts it; its flags are those of `gridwork`.",
    )
    serve.add_argument("--settings", type=Path, required=True, help="file with the settings, as JSON")
    serve.add_argument("--rank", type=int, default=0, help="number of this rank")
    serve.add_argument("--socket", required=True, help="unix socket to listen on, or host:port")
    serve.set_defaults(run=_run_serve)


def _run_serve(args: argparse.Namespace) -> int:
    try:
        config = read_settings(args.settings.read_text(encoding="utf-8"), args.rank, args.socket)
    except OSError as error:
        logs.fatal(f"--settings {args.settings} cannot be read: {error}")
        return 1
    except SettingsError as error:
        logs.fatal(str(error))
        return 1
    logs.set_up(config.log_level)
    # OpenMP reads it when PyTorch is imported. Threads that spin while they wait take the cores from the router and
    # from each other: with one more busy process a step was seen to take ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # PyTorch asks for huge pages: weights and cache are read all over, and finding a small page's place takes a while.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if config.otlp_endpoint:
        os.environ.setdefault("OTEL_SERVICE_NAME", config.otlp_service_name)
    from gridwork_server.service.grpc_service import serve

    return serve(config, config.otlp_endpoint)


if __name__ == "__main__":
    sys.exit(main())
