"""Charts in SVG, written by hand: a chart is lines through points on two logarithmic axes, and needs no library."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 720, 420, 70, 40, 50, 190
_COLOURS = ("#0b6e4f", "#b5179e", "#1d4ed8", "#c2410c", "#6b7280", "#7c3aed", "#0891b2", "#a16207")


def chart(title: str, x: str, y: str, lines: Mapping[str, Points]) -> str:
    """Return the chart; `x` and `y` say what the axes are, and their units."""
    points = [point for line in lines.values() for point in line]
    across = _Axis([one for one, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _Axis([one for _, one in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_WIDTH / 2, 20, title, "middle", "bold"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x, "middle"),
        f'<g transform="rotate(-90 16 {_HEIGHT / 2})">{_text(16, _HEIGHT / 2, y, "middle")}</g>',
    ]
    for value in across.ticks():
        at = across.at(value)
        parts.append(f'<path d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#e5e7eb"/>')
        parts.append(_text(at, _HEIGHT - _BOTTOM + 16, _number(value), "middle"))
    for value in up.ticks():
        at = up.at(value)
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}" stroke="#e5e7eb"/>')
        parts.append(_text(_LEFT - 6, at + 4, _number(value), "end"))
    for number, (name, line) in enumerate(lines.items()):
        parts += _line(name, [(across.at(one), up.at(other)) for one, other in sorted(line)], number)
    return "\n".join([*parts, "</svg>\n"])


class _Axis:
    """A logarithmic axis between two places of the picture, long enough for all values."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low, self._high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Return 1, 2 and 5 times the powers of ten that lie on the axis; the powers alone if these are many."""
        exponents = range(math.floor(self._low), math.ceil(self._high) + 1)
        steps = (1, 2, 5) if self._high - self._low < 2.5 else (1,)
        ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
        return [tick for tick in ticks if self._low <= math.log10(tick) <= self._high]


def _line(name: str, points: Points, number: int) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    path = " ".join(f"{'L' if index else 'M'}{one:.1f} {other:.1f}" for index, (one, other) in enumerate(points))
    dashes = ' stroke-dasharray="5 4"' if number >= len(_COLOURS) else ""
    y = _TOP + 10 + 18 * number
    return [
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>',
        *(f'<circle cx="{one:.1f}" cy="{other:.1f}" r="3" fill="{colour}"/>' for one, other in points),
        f'<path d="M{_WIDTH - _RIGHT + 14} {y}h18" stroke="{colour}" stroke-width="2"{dashes}/>',
        _text(_WIDTH - _RIGHT + 38, y + 4, name, "start"),
    ]


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:g}" if value < 1 else f"{value:,.0f}"
