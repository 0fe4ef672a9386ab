"""The table at the end of the check, of at most `MAX_LINES` lines."""

from collections.abc import Sequence

from gpu_check.results import Figure, Result

MAX_LINES = 60
_WIDTH = 160


def lines(results: Sequence[Result], folder: str) -> list[str]:
    """A line for each part, then the checks that failed, then the figures, within the maximum. folder: of the
    details."""
    head = [f"{'part':16} {'result':10} {'time':>7}  checks"]
    head += [_part(result) for result in results]
    foot = [f"details: {folder}"]
    problems = [f"  {result.name}: {check.name}: {check.problem}" for result in results for check in result.failed]
    figures = [_figure(figure) for result in results for figure in result.figures]
    room = MAX_LINES - len(head) - len(foot)
    # Half of the room for each, and more where the other needs less.
    for_problems = max(room // 2, room - len(figures) - 2 * bool(figures))
    rows = _section("checks that failed", problems, for_problems)
    rows += _section("figures", figures, room - len(rows))
    return [line if len(line) <= _WIDTH else line[: _WIDTH - 2] + " …" for line in (*head, *rows, *foot)]


def _part(result: Result) -> str:
    good = len(result.checks) - len(result.failed)
    text = f"{good} of {len(result.checks)} passed" if result.checks else ""
    left_out = f"{len(result.left_out)} left out" if result.left_out else ""
    notes = "; ".join(filter(None, (text, left_out, result.reason)))
    return f"{result.number} {result.name:14} {result.state:10} {result.seconds:6.1f}s  {notes}"


def _section(title: str, rows: list[str], room: int) -> list[str]:
    """A title and rows, of at most `room` lines."""
    if not rows or room < 2:
        return []
    kept = rows if len(rows) < room else rows[: max(0, room - 2)]
    more = [f"  … and {len(rows) - len(kept)} more"] if len(kept) < len(rows) else []
    return [f"{title}:", *kept, *more]


def _figure(figure: Figure) -> str:
    target = ""
    if figure.reached is not None:
        target = f"  ({figure.target}: {'reached' if figure.reached else 'NOT REACHED'})"
    return f"  {figure.name:58} {figure.value:10.3f} {figure.unit}{target}"
