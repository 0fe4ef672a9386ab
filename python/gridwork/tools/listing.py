"""Lists the commands and their flags for the launcher, which knows their names and completes them in shells.

`python -m gridwork.tools.listing FILE` writes the list; with `--check` it compares the file with what it would write.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gridwork.tools.parser import COMMANDS, build

_FILES = ("FILE", "OUT", "MODEL|URL", "URL|MODEL", "model")
"""Names of values that may be paths."""


def text() -> str:
    """The list as JSON."""
    parser = build()
    chosen = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    assert chosen.dest == COMMANDS
    abouts = {each.dest: each.help or "" for each in chosen._choices_actions}
    listed = [_command(name, abouts[name], command) for name, command in chosen.choices.items()]
    return json.dumps(listed, indent=2, ensure_ascii=False) + "\n"


def _command(name: str, about: str, command: argparse.ArgumentParser) -> dict[str, Any]:
    actions = [action for action in command._actions if action.dest != "help"]
    return {
        "name": name,
        "about": about,
        "takes_server_flags": bool(command.get_default("takes_flags")),
        "values": [_value(action) for action in actions if not action.option_strings],
        "flags": [
            {
                "name": spelling.removeprefix("--"),
                "about": action.help or "",
                "value": None if action.nargs == 0 else _value(action),
            }
            for action in actions
            for spelling in action.option_strings
            if spelling.startswith("--")
        ],
    }


def _value(action: argparse.Action) -> dict[str, Any]:
    name = action.metavar if isinstance(action.metavar, str) else action.dest
    return {
        "name": name,
        "choices": [str(choice) for choice in action.choices or ()],
        "is_path": action.type is Path or name in _FILES,
    }


def main(arguments: list[str]) -> int:
    """Writes the list, or compares it."""
    checks = "--check" in arguments
    (path,) = (Path(word) for word in arguments if word != "--check")
    if not checks:
        path.write_text(text(), encoding="utf-8")
        return 0
    if path.read_text(encoding="utf-8") == text():
        return 0
    print(f"{path} is not what the commands of python/gridwork/tools are; run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
