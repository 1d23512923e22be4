"""Panels of one plot as SVG: curves with intervals, and a matrix in shades.

In: numbers by name. Out: `Panel`s, and an `<svg>` element with several of them side by side.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medjax.report.charts import DOT, FAINT, FILL, INK, Number, escape
from medjax.report.charts import STYLE as TEXT

COLOURS = (DOT, "#D55E00", "#009E73", "#CC79A7")  # of curves: Okabe and Ito's, for all eyes
LEFT, TOP, WIDTH, HEIGHT = 52, 34, 300, 220


class Panel(NamedTuple):
    """A part of a plot: size in points and the elements inside."""

    width: Number
    height: Number
    marks: tuple[str, ...]


class Point(NamedTuple):
    """A value of a curve with its interval (None: unknown) and a note that is shown on it."""

    x: Number
    y: Number
    interval: Sequence[Number] | None = None
    note: str = ""


def lines(
    title: str,
    curves: Mapping[str, Sequence[Point]],
    *,
    x: str,
    y: str,
    ends: tuple[Number, Number],
) -> Panel:
    """Curves over x with 95 % intervals; y from 0 to 1.

    Args:
      curves: name -> points, in any order. x, y: titles of the axes. ends: of the axis of x.
    """
    low, high = ends

    def at(a: Number, b: Number) -> tuple[Number, Number]:
        share = (min(max(a, low), high) - low) / (high - low)
        return LEFT + WIDTH * share, TOP + HEIGHT * (1 - min(max(b, 0.0), 1.0))

    marks = [*_heading(title)]
    marks.append(
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
        f'stroke="{FAINT}" stroke-opacity="0.5"/>'
    )
    step = (high - low) / 5
    for k in range(6):
        px, py = at(low + k * step, k / 5)
        marks.append(
            f'<text x="{px:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle" '
            f'fill="{FAINT}">{low + k * step:.3g}</text>'
        )
        marks.append(
            f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end" '
            f'fill="{FAINT}">{k / 5:g}</text>'
        )
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        ordered = sorted(points)
        joined = " ".join("{:.1f},{:.1f}".format(*at(p.x, p.y)) for p in ordered)
        marks.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" />')
        for p in ordered:
            px, py = at(p.x, p.y)
            if p.interval:
                (_, a), (_, b) = at(p.x, p.interval[0]), at(p.x, p.interval[1])
                marks.append(
                    f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{a:.1f}" y2="{b:.1f}" '
                    f'stroke="{colour}" stroke-opacity="0.6"/>'
                )
            marks.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"><title>'
                f"{escape(f'{name} {p.note}: {p.y:.3f} at {p.x:.3g}')}</title></circle>"
            )
        marks.append(
            f'<text x="{LEFT + 8}" y="{TOP + HEIGHT - 8 - 15 * number}" '
            f'fill="{colour}">{escape(name)}</text>'
        )
    marks.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 34}" text-anchor="middle" '
        f'fill="{FAINT}">{escape(x)}</text>'
    )
    marks.append(f'<text x="{LEFT - 40}" y="{TOP - 8}" fill="{FAINT}">{escape(y)}</text>')
    return Panel(LEFT + WIDTH + 24, TOP + HEIGHT + 44, tuple(marks))


def matrix(
    title: str, names: Sequence[str], values: Sequence[Sequence[Number | None]], *, row: str
) -> Panel:
    """Numbers of 0 to 1 as shades, names at both sides.

    Args:
      values: (rows, columns) of these names; None: no value. row: what the rows are.
    """
    side = max(16, min(34, HEIGHT // max(1, len(names))))
    left = 14 + 7 * min(24, max([6, *map(len, names)]))
    marks = [*_heading(title, left)]
    marks.append(
        f'<text x="{left - 6}" y="{TOP - 4}" text-anchor="end" fill="{FAINT}">{row}</text>'
    )
    for i, (name, line) in enumerate(zip(names, values, strict=True)):
        middle = TOP + side * (i + 0.5) + 4
        label = escape(name if len(name) <= 24 else name[:23] + "…")
        marks.append(f'<text x="{left - 6}" y="{middle:.1f}" text-anchor="end">{label}</text>')
        for j, value in enumerate(line):
            if value is None or not math.isfinite(value):
                continue
            place = f'x="{left + side * j}" y="{TOP + side * i}" width="{side}" height="{side}"'
            said = escape(f"text {name}, reference {names[j]}: {value:.3f}")
            marks.append(
                f'<rect {place} fill="{FILL if i == j else COLOURS[1]}" '
                f'fill-opacity="{min(1.0, max(0.0, value)):.3f}" stroke="{FAINT}" '
                f'stroke-opacity="0.3"><title>{said}</title></rect>'
            )
            if side >= 26:
                marks.append(
                    f'<text x="{left + side * (j + 0.5)}" y="{middle:.1f}" text-anchor="middle" '
                    f'font-size="9" fill="{INK}">{value:.2f}</text>'
                )
    return Panel(left + side * len(names) + 24, TOP + side * len(names) + 20, tuple(marks))


def svg(panels: Sequence[Panel]) -> str:
    """The panels side by side."""
    width, height = sum(p.width for p in panels), max(p.height for p in panels)
    parts, at = [], 0.0
    for one in panels:
        parts += [f'<g transform="translate({at:.0f} 0)">', *one.marks, "</g>"]
        at += one.width
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {TEXT}>' + "\n".join(parts) + "</svg>"


def _heading(title: str, left: Number = LEFT) -> tuple[str, ...]:
    return (f'<text x="{left}" y="14" font-weight="600" fill="{INK}">{escape(title)}</text>',)
