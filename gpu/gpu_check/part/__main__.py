"""Runs one part in this process: `python -m gpu_check.part NAME --results FOLDER --device DEVICE --limit-s SECONDS`."""

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from gpu_check import parts, results
from gpu_check.part.context import Context, Refused, one_line
from gpu_check.results import Result

_MARGIN_S = 8.0
"""Time before the limit at which a part should end by itself, and the share of short limits."""
_MARGIN = 0.15


def main() -> int:
    """Runs the part. Returns 1 when a check failed."""
    parser = argparse.ArgumentParser(description="Runs one part of the check.")
    parser.add_argument("part")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--limit-s", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    (part,) = parts.choose(args.part)
    limit_s = args.limit_s - min(_MARGIN_S, _MARGIN * args.limit_s)
    result = Result(part.number, part.name, part.title)
    context = Context(args.results, part.label, args.device, args.tiny, time.monotonic() + limit_s, result)
    run(part, context)
    return 1 if result.is_bad else 0


def run(part: parts.Part, context: Context) -> None:
    """Runs a part, and completes its result whatever it raises."""
    result = context.result
    try:
        importlib.import_module(f"gpu_check.part.{part.name}").run(context)
    except Refused as error:
        result.state, result.reason = results.FAILED, str(error)
    except Exception as error:
        traceback.print_exc()
        result.state, result.reason = results.FAILED, f"{one_line(error)}; see {part.label}.log"
    else:
        result.state = results.FAILED if result.failed else results.CUT if context.was_cut else results.PASSED
    context.write()


if __name__ == "__main__":
    sys.exit(main())
