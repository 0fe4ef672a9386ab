"""The tools beside the server: `gridwork COMMAND …` runs `python -m gridwork COMMAND …`."""

import sys

from gridwork.errors import GridworkError
from gridwork.tools.parser import build


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    parser = build()
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
