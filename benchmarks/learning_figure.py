"""Curves as one SVG of small panels, which reads on light and on dark: its text and lines are grey."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 212, 190, 44, 34, 76, 14
_GREY = "#888888"
_COLOURS = ("#d9730d", "#2f86d6", "#888888", "#b0413e", "#4b9b5f")  # of lines in turn, on white and on black
_DASHES = ("", "6 3", "2 3", "", "6 3")


@dataclass(frozen=True)
class Line:
    """A named curve: points `(x, y, low, high)` with x above 0, in their order."""

    name: str
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Panel:
    """Curves of one measure between 0 and 1."""

    title: str
    lines: Sequence[Line]


def figure(panels: Sequence[Panel], x_title: str) -> str:
    """All panels in a row, with one logarithmic x and one y axis for all of them, and a legend below."""
    points = [point for panel in panels for line in panel.lines for point in line.points]
    xs = sorted({x for x, *_ in points})
    bottom = math.floor(10 * min(low for _, _, low, _ in points)) / 10
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    width = LEFT + len(panels) * (WIDTH + GAP)
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">'
    ]

    def across(x: float) -> float:
        return 10 + (WIDTH - 20) * math.log(x / xs[0]) / max(math.log(xs[-1] / xs[0]), 1e-9)

    def down(y: float) -> float:
        return TOP + HEIGHT * (1 - y) / (1 - bottom)

    ticks = [bottom + tenth / 10 for tenth in range(round((1 - bottom) * 10) + 1)]
    for number, panel in enumerate(panels):
        start = LEFT + number * (WIDTH + GAP)
        parts.append(_text(start, TOP - 12, panel.title, "start", 13))
        for tick in ticks:
            y = down(tick)
            parts.append(_path([(start, y), (start + WIDTH, y)], _GREY, 'stroke-opacity="0.3"'))
            if number == 0:
                parts.append(_text(start - 6, y + 4, f"{tick:.1f}", "end"))
        for x in xs:
            parts.append(_text(start + across(x), TOP + HEIGHT + 16, f"{x:.0f}", "middle"))
        for line in panel.lines:
            parts += _curve(line, names.index(line.name), lambda x, start=start: start + across(x), down)
    parts.append(_text(LEFT + (width - LEFT) / 2, TOP + HEIGHT + 38, x_title, "middle"))
    for number, name in enumerate(names):
        x, y = LEFT + 150 * number, height - 14
        parts.append(_path([(x, y - 4), (x + 26, y - 4)], _COLOURS[number], _stroke(number)))
        parts.append(_text(x + 32, y, name, "start"))
    return "\n".join([*parts, "</svg>\n"])


def _curve(line: Line, number: int, across, down) -> list[str]:  # type: ignore[no-untyped-def]
    """A line, its points, and an upright bar from low to high at each."""
    colour = _COLOURS[number]
    places = [(across(x) + 2.5 * (number - 1), down(y)) for x, y, _, _ in line.points]
    parts = [_path(places, colour, _stroke(number))]
    for (x, y), (_, _, low, high) in zip(places, line.points, strict=True):
        parts.append(_path([(x, down(low)), (x, down(high))], colour, 'stroke-opacity="0.6"'))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
    return parts


def _stroke(number: int) -> str:
    dash = f' stroke-dasharray="{_DASHES[number]}"' if _DASHES[number] else ""
    return f'stroke-width="2"{dash}'


def _path(points: Sequence[tuple[float, float]], colour: str, more: str) -> str:
    d = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="{d}" fill="none" stroke="{colour}" {more}/>'


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{_GREY}">'
        f"{escape(text)}</text>"
    )
