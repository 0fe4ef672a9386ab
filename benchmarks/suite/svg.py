"""Small charts as SVG text: panels of lines over a logarithmic axis, and bars. Equal values give equal bytes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")
"""Colours of the series, in order and cyclic."""

_STYLE = (
    "text{font:10px sans-serif;fill:#222}.end{text-anchor:end}.mid{text-anchor:middle}.head{font-weight:bold}"
    ".grid{stroke:#ddd}.axis{stroke:#222}path{fill:none;stroke-width:1.5}"
)
_WIDTH, _HEIGHT = 250, 170  # of a panel, without its texts
_LEFT, _TOP, _BELOW, _GAP = 42, 44, 34, 20
_LEGEND_LINE = 14
_BAR, _BAR_LEFT, _BAR_WIDTH, _BAR_RIGHT = 22, 160, 300, 50


@dataclass(frozen=True)
class Point:
    """A value with the range that it was measured in; `x` is positive."""

    x: float
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    series: Sequence[Series]
    """Series of the same order in all panels have the same colour."""


def line_chart(title: str, panels: Sequence[Panel]) -> str:
    """Panels beside each other, and one legend below them."""
    names = [series.name for series in panels[0].series]
    parts = [_text(_LEFT, 14, title, "head")]
    for index, panel in enumerate(panels):
        parts += _panel(panel, _LEFT + index * (_LEFT + _WIDTH + _GAP))
    y = _TOP + _HEIGHT + _BELOW
    for index, name in enumerate(names):
        row = y + _LEGEND_LINE * (index + 1)
        parts.append(f'<path stroke="{_colour(index)}" d="M{_LEFT} {row - 4}h18"/>{_text(_LEFT + 24, row, name)}')
    width = len(panels) * (_LEFT + _WIDTH + _GAP)
    return _document(width, y + _LEGEND_LINE * len(names) + 8, parts)


def bar_chart(title: str, label: str, values: Mapping[str, float]) -> str:
    """A horizontal bar for each value."""
    parts = [_text(_BAR_LEFT, 14, title, "head")]
    highest = max(values.values()) or 1.0
    for index, (name, value) in enumerate(values.items()):
        y = 24 + _BAR * index
        width = _BAR_WIDTH * value / highest
        bar = f'<rect x="{_BAR_LEFT}" y="{y}" width="{_number(width)}" height="{_BAR - 6}" fill="{COLOURS[0]}"/>'
        parts.append(
            bar + _text(_BAR_LEFT - 6, y + 12, name, "end") + _text(_BAR_LEFT + width + 4, y + 12, f"{value:.1f}")
        )
    y = 24 + _BAR * len(values) + 12
    parts.append(_text(_BAR_LEFT, y, label))
    return _document(_BAR_LEFT + _BAR_WIDTH + _BAR_RIGHT, y + 8, parts)


def _panel(panel: Panel, left: float) -> list[str]:
    points = [point for series in panel.series for point in series.points]
    xs = sorted({point.x for point in points})
    step = tick_step(max(point.high for point in points))
    count = max(1, math.ceil(max(point.high for point in points) / step))
    span = math.log2(xs[-1] / xs[0]) or 1.0

    def across(x: float) -> float:
        return left + 10 + (_WIDTH - 20) * math.log2(x / xs[0]) / span

    def up(y: float) -> float:
        return _TOP + _HEIGHT * (1 - y / (step * count))

    parts = [_text(left, _TOP - 10, panel.title)]
    for tick in range(count + 1):
        y = up(step * tick)
        kind = "grid" if tick else "axis"
        parts.append(f'<path class="{kind}" d="M{left} {_number(y)}h{_WIDTH}"/>')
        parts.append(_text(left - 4, y + 3, f"{step * tick:g}", "end"))
    parts += [_text(across(x), _TOP + _HEIGHT + 14, f"{x:g}", "mid") for x in xs]
    parts.append(_text(left + _WIDTH / 2, _TOP + _HEIGHT + 28, panel.x_label, "mid"))
    for index, series in enumerate(panel.series):
        colour = _colour(index)
        line = "L".join(f"{_number(across(point.x))} {_number(up(point.middle))}" for point in series.points)
        ranges = "".join(
            f"M{_number(across(point.x))} {_number(up(point.low))}V{_number(up(point.high))}" for point in series.points
        )
        if line:
            parts.append(f'<path stroke="{colour}" d="M{line}{ranges}"/>')
        parts += [
            f'<circle cx="{_number(across(point.x))}" cy="{_number(up(point.middle))}" r="2.5" fill="{colour}"/>'
            for point in series.points
        ]
    return parts


def tick_step(highest: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that needs at most five steps to `highest`."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= highest)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{_number(x)}" y="{_number(y)}"{chosen}>{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{round(value, 1):g}"


def _document(width: float, height: float, parts: Iterable[str]) -> str:
    size = f'width="{_number(width)}" height="{_number(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {_number(width)} {_number(height)}">'
    return "\n".join(
        [head, f"<style>{_STYLE}</style>", '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""]
    )
