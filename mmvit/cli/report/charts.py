"""Line charts and bars as inline SVG and HTML that follow the page's light and dark colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 26


def line_chart(
    title: str, lines: Mapping[str, Sequence[tuple[float, float]]], places: Mapping[str, int]
) -> str:
    """A figure with one line per run over samples seen; noisy lines get a smooth one over a faint one.

    Args:
        title: of the figure.
        lines: run -> (x, y) points, x rising.
        places: run -> its colour, 0..5.
    """
    points = [point for line in lines.values() for point in line]
    x_high = max(x for x, _ in points) or 1.0
    x_ticks = [x for x in ticks(0, x_high, 5) if x <= x_high]
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), 5)
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (WIDTH - LEFT - RIGHT) * x / x_high
        down = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (high - low))
        return round(right, 1), round(down, 1)

    parts = []
    for y in y_ticks:
        _, v = place(0, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{v}" y2="{v}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{v + 3.5}" text-anchor="end">{short(y)}</text>')
    for x in x_ticks:
        u, _ = place(x, low)
        parts.append(f'<text x="{u}" y="{HEIGHT - 8}" text-anchor="middle">{short(x)}</text>')
    for name, line in lines.items():
        if len(line) > 40:
            parts.append(_path(line, place, f"line c{places[name]} faint", ""))
            line = smooth(line)
        parts.append(_path(line, place, f"line c{places[name]}", name))
        (u, v), last = place(*line[-1]), line[-1][1]
        dot = f'<circle class="dot c{places[name]}" cx="{u}" cy="{v}" r="3">'
        parts.append(f"{dot}<title>{escape(name)}: {last:.4g}</title></circle>")
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def bars(rows: Sequence[tuple[str, float, str, bool]]) -> str:
    """Horizontal bars, the longest value full width.

    Args:
        rows: (name, value, what is written beside it, whether it is marked as right).
    """
    longest = max((row[1] for row in rows), default=0) or 1
    items = []
    for name, value, text, right in rows:
        width = f"width:{max(0.4, 100 * value / longest):.1f}%"
        track = f'<span class="track"><span class="fill" style="{width}"></span></span>'
        label = f'<span class="name" title="{escape(name)}">{escape(name)}{" ✓" if right else ""}</span>'
        opening = '<li class="right">' if right else "<li>"
        items.append(f'{opening}{label}{track}<span class="num">{escape(text)}</span></li>')
    return f'<ul class="bars">{"".join(items)}</ul>'


def legend(names: Sequence[str], places: Mapping[str, int]) -> str:
    """The runs with their colours."""
    keys = "".join(f'<span class="key"><i class="c{places[n]}"></i>{escape(n)}</span>' for n in names)
    return f'<p class="legend">{keys}</p>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    raw = (high - low) / max(1, count - 1)
    size = 10 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def smooth(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The line after an exponential moving average (a 40th of its length), unbiased at the start."""
    weight = 1 - 1 / max(4, len(line) / 40)
    total, mass, out = 0.0, 0.0, []
    for x, y in line:
        total, mass = weight * total + (1 - weight) * y, weight * mass + 1 - weight
        out.append((x, total / mass))
    return out


def short(value: float) -> str:
    """12k, 1.5M, 0.25: a tick label."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _path(line: Sequence[tuple[float, float]], place: object, css: str, name: str) -> str:
    assert callable(place)
    points = " ".join(f"{u},{v}" for u, v in (place(x, y) for x, y in line))
    title = f"<title>{escape(name)}</title>" if name else ""
    return f'<polyline class="{css}" points="{points}">{title}</polyline>'
