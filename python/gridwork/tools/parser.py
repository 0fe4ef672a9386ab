"""The command line of the tools beside the server."""

import argparse

from gridwork.tools import bench, chat, check, convert, download, env, run_batch

COMMANDS = "commands"
"""Where the parser keeps its commands."""


def build() -> argparse.ArgumentParser:
    """The parser of all commands. Each sets `run`, and `takes_flags` where flags of the server are its own too."""
    parser = argparse.ArgumentParser(
        prog="gridwork",
        description="Tools beside the server.",
        epilog="`gridwork --help` describes the server's flags.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest=COMMANDS)
    for tool in (chat, bench, check, run_batch, download, convert, env):
        tool.register(commands)
    # An abbreviation may be a flag of the server.
    for command in commands.choices.values():
        command.allow_abbrev = False
    return parser
