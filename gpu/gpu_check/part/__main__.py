"""Runs one part in this process: `python -m gpu_check.part NAME --results FOLDER --device DEVICE --limit-s SECONDS`.

With `--variant`, runs one variant of it, whose result has a file of its own.
"""

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from gpu_check import parts, results
from gpu_check.part.context import Context, Refused, one_line
from gpu_check.part.variants import label_of
from gpu_check.results import Result

_MARGIN_S = 8.0
"""Time before the limit at which a part should end by itself, and the share of short limits."""
_MARGIN = 0.15


def main() -> int:
    """Runs the part. Returns 1 when a check failed."""
    parser = argparse.ArgumentParser(description="Runs one part of the check.")
    parser.add_argument("part")
    parser.add_argument("--variant")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--limit-s", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    (part,) = parts.choose(args.part)
    limit_s = args.limit_s - min(_MARGIN_S, _MARGIN * args.limit_s)
    result = Result(part.number, part.name, part.title)
    label = label_of(part.label, args.variant) if args.variant else part.label
    context = Context(args.results, label, args.device, args.tiny, time.monotonic() + limit_s, result)
    run(part, context, args.variant)
    return 1 if result.is_bad else 0


def run(part: parts.Part, context: Context, variant: str | None = None) -> None:
    """Runs a part or one variant of it, and completes its result whatever it raises."""
    result = context.result
    try:
        module = importlib.import_module(f"gpu_check.part.{part.name}")
        module.run_variant(context, variant) if variant else module.run(context)
    except Refused as error:
        result.state, result.reason = results.FAILED, str(error)
    except Exception as error:
        traceback.print_exc()
        result.state, result.reason = results.FAILED, f"{one_line(error)}; see {context.label}.log"
    else:
        if not (result.checks or result.figures or variant or context.was_cut):
            result.reason = "nothing could be checked; see what was left out"
        result.state = (
            results.FAILED if result.failed or result.reason else results.CUT if context.was_cut else results.PASSED
        )
    context.write()


if __name__ == "__main__":
    sys.exit(main())
