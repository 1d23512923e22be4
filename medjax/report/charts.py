"""Plots as SVG text: box plots of scores, and agreement of volumes (Bland and Altman).

In: numbers by name. Out: an `<svg>` element whose marks carry their case as a tooltip.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.errors import shown

Number = int | float

STYLE = 'font-family="system-ui, Liberation Sans, sans-serif" font-size="12"'
INK, FAINT, FILL, DOT = "currentColor", "#8a94a0", "#56B4E9", "#0072B2"


def escape(name: str) -> str:
    """A name as text of an SVG: no markup, no control characters (which XML forbids)."""
    return html.escape(shown(name))


def box_plot(
    title: str,
    values: Mapping[str, Sequence[tuple[str, Number]]],
    low: Number | None = None,
    high: Number | None = None,
) -> str:
    """Horizontal boxes, one per name: quartiles, median, whiskers to the last value within 1.5 IQR.

    Every case is a dot.

    Args:
      values: name -> (case, value) of every case. low, high: ends of the axis; default from the
        values.
    """
    found = [v for cases in values.values() for _, v in cases]
    low = min([0.0, *found]) if low is None else low
    high = max([*found, low + 1e-9]) if high is None else high
    left, width, step, top = 14 + 7 * min(34, max([8, *map(len, values)])), 640, 26, 30
    height = top + step * len(values) + 34

    def at(v: Any) -> Any:
        return left + width * (min(max(v, low), high) - low) / (high - low)

    marks = [f'<text x="{left}" y="16" font-weight="600" fill="{INK}">{escape(title)}</text>']
    for tick in _ticks(low, high):
        x = at(tick)
        marks.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 28}" stroke="{FAINT}" '
            'stroke-opacity="0.3"/>'
        )
        marks.append(
            f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle" '
            f'fill="{FAINT}">{tick:g}</text>'
        )
    rng = np.random.default_rng(0)
    for row, (name, cases) in enumerate(values.items()):
        y = top + step * (row + 0.5)
        marks.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" '
            f'fill="{INK}">{escape(_short(name))}</text>'
        )
        if not cases:
            marks.append(f'<text x="{left + 4}" y="{y + 4:.1f}" fill="{FAINT}">no case</text>')
            continue
        numbers = np.array([v for _, v in cases])
        q1, median, q3 = np.percentile(numbers, (25, 50, 75))
        reach = 1.5 * (q3 - q1)
        ends = numbers[numbers >= q1 - reach].min(), numbers[numbers <= q3 + reach].max()
        marks.append(
            f'<line x1="{at(ends[0]):.1f}" x2="{at(ends[1]):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{INK}" stroke-opacity="0.6"/>'
        )
        marks.append(
            f'<rect x="{at(q1):.1f}" y="{y - 7:.1f}" width="{max(1.0, at(q3) - at(q1)):.1f}" '
            f'height="14" rx="2" fill="{FILL}" '
            f'fill-opacity="0.35" stroke="{INK}" stroke-opacity="0.6"/>'
        )
        marks.append(
            f'<line x1="{at(median):.1f}" x2="{at(median):.1f}" y1="{y - 7:.1f}" y2="{y + 7:.1f}" '
            f'stroke="{INK}" stroke-width="2"/>'
        )
        for (case, v), shift in zip(cases, rng.uniform(-5, 5, len(cases)), strict=True):
            tip = f"<title>{escape(case)}: {v:.4g}</title>"
            marks.append(
                f'<circle cx="{at(v):.1f}" cy="{y + shift:.1f}" r="2.2" fill="{DOT}" '
                f'fill-opacity="0.65">{tip}</circle>'
            )
    return _svg(left + width + 24, height, marks)


def bland_altman(
    title: str,
    points: Sequence[tuple[str, Number, Number]],
    bias: Number,
    limits: Sequence[Number] | None,
) -> str:
    """Difference of volumes over their mean, with bias and 95 % limits of agreement.

    Args:
      points: (case, mean of both volumes in ml, predicted minus reference volume in ml).
      bias, limits: from `aggregate.agreement_limits`.
    """
    left, top, width, height = 64, 30, 400, 220
    xs, ys = [x for _, x, _ in points], [y for *_, y in points]
    x0, x1 = 0.0, max([*xs, 1e-9]) * 1.05
    spread = [*ys, bias, *(limits or ()), 0.0]
    pad = 0.08 * (max(spread) - min(spread)) or 1.0
    y0, y1 = min(spread) - pad, max(spread) + pad

    def at(x: Number, y: Number) -> tuple[Number, Number]:
        return left + width * (x - x0) / (x1 - x0), top + height * (y1 - y) / (y1 - y0)

    marks = [f'<text x="{left}" y="16" font-weight="600" fill="{INK}">{escape(title)}</text>']
    marks.append(
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" '
        f'stroke="{FAINT}" stroke-opacity="0.5"/>'
    )
    for tick in _ticks(x0, x1):
        x, _ = at(tick, y0)
        marks.append(
            f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle" '
            f'fill="{FAINT}">{tick:g}</text>'
        )
    for tick in _ticks(y0, y1):
        _, y = at(x0, tick)
        marks.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="{FAINT}">{tick:g}</text>'
        )
    lines = [(bias, "", f"bias {bias:.3g}")] + [(v, "5 4", f"{v:.3g}") for v in limits or ()]
    for value, dash, label in lines:
        (a, y), (b, _) = at(x0, value), at(x1, value)
        marks.append(
            f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" '
            f'stroke-dasharray="{dash}" stroke-opacity="0.7"/>'
        )
        marks.append(f'<text x="{b + 5:.1f}" y="{y + 4:.1f}" fill="{FAINT}">{label}</text>')
    for case, x, y in points:
        cx, cy = at(x, y)
        tip = f"<title>{escape(case)}: {y:+.4g} ml at {x:.4g} ml</title>"
        marks.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3" fill="{DOT}" '
            f'fill-opacity="0.65">{tip}</circle>'
        )
    marks.append(
        f'<text x="{left + width / 2}" y="{top + height + 34}" text-anchor="middle" '
        f'fill="{FAINT}">mean volume (ml)</text>'
    )
    return _svg(left + width + 80, top + height + 44, marks)


def _svg(width: Number, height: Number, marks: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {STYLE}>' + "\n".join(marks) + "</svg>"


def _ticks(low: Number, high: Number) -> list[Number]:
    """About six round numbers."""
    raw = (high - low) / 6
    unit = 10 ** math.floor(math.log10(raw))
    step = min((m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw), default=unit)
    return [
        round(k * step, 12)
        for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:33] + "…"
