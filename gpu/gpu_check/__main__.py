"""Proves and measures Gridwork on a machine with a GPU. `make gpu-check` runs it; docs/gpu.md describes it.

    python -m gpu_check [--parts "2 4"] [--minutes N] [--dry-run] [--pack FOLDER] [--results FOLDER]

The exit code is 1 when a check failed or a part did not end well, and 2 when the machine cannot be set up.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from gpu_check import parts, results, runner, setup, table
from gpu_check.results import Result

_SETUP_LIMIT_S = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    started = time.monotonic()
    args = _arguments(arguments)
    try:
        chosen = parts.choose(args.parts)
        site = setup.prepare(args.pack, args.site)
    except (parts.UnknownPart, setup.SetupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _report_setup(args.pack, time.monotonic() - started)
    if args.dry_run:
        chosen = tuple(part for part in chosen if part.in_dry_run)
    _clear(args.results, chosen)
    plan = runner.Plan(
        folder=args.results,
        environment=site.environment(is_interpreted=args.dry_run),
        device="cpu" if args.dry_run else "cuda",
        tiny=args.dry_run,
        until=started + 60 * args.minutes if args.minutes else None,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        runner.run(chosen, plan)
    return _finish(chosen, args.results)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description="Proves and measures Gridwork on a GPU.")
    parser.add_argument("--parts", default="", metavar="LIST", help="numbers or names of parts; default: all of them")
    parser.add_argument("--minutes", type=_positive, metavar="N", help="time for everything, setup included")
    parser.add_argument("--dry-run", action="store_true", help="run on the CPU with tiny shapes, without parts 4 and 8")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="pack; default: gpu-pack, where there is one")
    parser.add_argument("--no-pack", action="store_true", help="use the packages of this Python and target/release")
    parser.add_argument("--results", type=Path, default=setup.ROOT / "gpu-results", metavar="FOLDER")
    parser.add_argument("--site", type=Path, default=setup.ROOT / "gpu-site", metavar="FOLDER", help="unpacked pack")
    args = parser.parse_args(arguments)
    usual = setup.ROOT / "gpu-pack"
    if args.no_pack:
        args.pack = None
    elif args.pack is None and usual.exists():
        args.pack = usual
    args.results, args.site = args.results.resolve(), args.site.resolve()
    return args


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of minutes above 0')
    return value


def _report_setup(pack: Path | None, seconds: float) -> None:
    source = f"from {pack}" if pack else "with the packages of this Python"
    print(f"==> set up {source} in {seconds:.1f} s", flush=True)
    if seconds > _SETUP_LIMIT_S:
        print(f"    that is more than {_SETUP_LIMIT_S} s; a later run uses what is unpacked", flush=True)


def _clear(folder: Path, chosen: Sequence[parts.Part]) -> None:
    """Removes the parts' results of an earlier run. Those of other parts stay: part 8 uses what part 1 measured."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in chosen:
        for old in folder.glob(f"{part.label}*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def _interrupt(_number: int, _frame: FrameType | None) -> Any:
    raise KeyboardInterrupt


def _finish(chosen: Sequence[parts.Part], folder: Path) -> int:
    """Prints the table of what is known and writes it to a file. Returns the exit code."""
    found = [results.read(results.path_of(folder, part.label)) or _missing(part) for part in chosen]
    for result in found:
        if result.state == results.RUNNING:
            result.state, result.reason = results.STOPPED, "the check was interrupted"
    rows = table.lines(found, str(folder))
    (folder / "table.txt").write_text("\n".join(rows) + "\n")
    print("\n".join(rows), flush=True)
    return 1 if any(result.is_bad for result in found) else 0


def _missing(part: parts.Part) -> Result:
    return Result(part.number, part.name, part.title, results.SKIPPED, reason="the check was interrupted")


if __name__ == "__main__":
    sys.exit(main())
