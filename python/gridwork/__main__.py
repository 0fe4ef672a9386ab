"""The tools beside the server: `gridwork COMMAND …` runs `python -m gridwork COMMAND …`."""

import argparse
import sys

from gridwork.errors import GridworkError
from gridwork.tools import check, convert, download, env, run_batch


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="gridwork",
        description="Tools beside the server.",
        epilog="`gridwork --help` describes the server's flags.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for tool in (env, check, run_batch, download, convert):
        tool.register(commands)
    # An abbreviation may be a flag of the server.
    for command in commands.choices.values():
        command.allow_abbrev = False
    args, rest = parser.parse_known_args(arguments)
    if rest and not args.takes_flags:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.flags = rest
    try:
        return int(args.run(args))
    except GridworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
