"""A plot in SVG, without a script: axes, lines, bands, dots and rules, in the systems' colours."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 400, 220
"""In the units of the drawing; a page scales it to its column."""
_LEFT, _RIGHT, _TOP, _BOTTOM_MARGIN = 48, 388, 26, 38
_END = 0.75
"""Labels to the right of this part of the width end at their point."""

Points = Sequence[tuple[float, float]]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Axis:
    """A scale from the first tick to the last, or from `low` to `high`."""

    title: str
    ticks: list[tuple[float, str]]
    low: float
    high: float


def make_axis(title: str, ticks: Sequence[float], form: str) -> Axis:
    """An axis over ticks, each written in a format such as `.0%`."""
    texts = [(tick, format(tick + 0.0, form)) for tick in ticks]
    return Axis(title, texts, ticks[0], ticks[-1])


def find_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """From just below the lowest value to just above the highest, in round steps, `most` or so."""
    width = max(high - low, abs(high) * 1e-9, 1e-12)
    magnitude = 10.0 ** math.floor(math.log10(width))
    sizes = (s * magnitude for s in (0.1, 0.2, 0.25, 0.5, 1, 2, 5))
    step = next(size for size in sizes if width / size <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


class Plot:
    """What is drawn so far; `render` gives the SVG element.

    `style` is a class of the page's stylesheet, such as a system's key.
    """

    def __init__(self, x: Axis, y: Axis, height: int = HEIGHT) -> None:
        self._x, self._y, self._height = x, y, height
        self._bottom = height - _BOTTOM_MARGIN
        self._parts = [self._draw_axes()]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point of the drawing."""
        across = (x - self._x.low) / (self._x.high - self._x.low)
        up = (y - self._y.low) / (self._y.high - self._y.low)
        return _LEFT + (_RIGHT - _LEFT) * across, self._bottom - (self._bottom - _TOP) * up

    def _draw_axes(self) -> str:
        parts = []
        for value, text in self._y.ticks:
            y = self.place(self._x.low, value)[1]
            parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}"/>')
            parts.append(_write(_LEFT - 6, y + 4, text, "end"))
        for i, (value, text) in enumerate(self._x.ticks):
            x = self.place(value, self._y.low)[0]
            is_last = i == len(self._x.ticks) - 1
            parts.append(_write(x, self._bottom + 16, text, "end" if is_last else "middle"))
        parts.append(_write(0, 12, self._y.title, "start"))
        parts.append(_write(_RIGHT, self._height - 4, self._x.title, "end"))
        return "".join(parts)

    def add_line(self, points: Points, style: str) -> None:
        """A line through points."""
        path = " ".join("{:.1f},{:.1f}".format(*self.place(*point)) for point in points)
        self._parts.append(f'<polyline class="{style}" points="{path}"/>')

    def add_band(self, low: Points, high: Points, style: str) -> None:
        """An area between two lines over the same places."""
        outline = [*low, *reversed(high)]
        path = " ".join("{:.1f},{:.1f}".format(*self.place(*point)) for point in outline)
        self._parts.append(f'<polygon class="{style}" points="{path}"/>')

    def add_dot(self, x: float, y: float, style: str, radius: float = 3.5) -> None:
        """A dot at a point."""
        left, top = self.place(x, y)
        self._parts.append(f'<circle class="{style}" cx="{left:.1f}" cy="{top:.1f}" r="{radius}"/>')

    def add_whisker(self, x: float, low: float, high: float, style: str) -> None:
        """An interval at a place, as an upright line."""
        left, bottom = self.place(x, low)
        top = self.place(x, high)[1]
        ends = f'x1="{left:.1f}" y1="{bottom:.1f}" x2="{left:.1f}" y2="{top:.1f}"'
        self._parts.append(f'<line class="{style} whisker" {ends}/>')

    def add_level(self, y: float, style: str, text: str, is_below: bool = False) -> None:
        """A line across at a value, with a text on it at the right."""
        top = self.place(self._x.low, y)[1]
        ends = f'x1="{_LEFT}" y1="{top:.1f}" x2="{_RIGHT}" y2="{top:.1f}"'
        self._parts.append(f'<line class="rule {style}" {ends}/>')
        self._parts.append(_write(_RIGHT, top + (13 if is_below else -5), text, "end"))

    def add_mark(self, x: float, text: str) -> None:
        """A line upwards at a place, with a text at its top."""
        left = self.place(x, self._y.low)[0]
        ends = f'x1="{left:.1f}" y1="{_TOP}" x2="{left:.1f}" y2="{self._bottom}"'
        anchor: Anchor = "end" if left > _END * _RIGHT else "middle"
        self._parts.append(
            f'<line class="mark-line" {ends}/>{_write(left, _TOP - 5, text, anchor)}'
        )

    def add_text(self, x: float, y: float, text: str, style: str = "value") -> None:
        """A text beside a point."""
        left, top = self.place(x, y)
        anchor: Anchor = "end" if left > _END * _RIGHT else "start"
        aside = -8 if anchor == "end" else 8
        self._parts.append(_write(left + aside, top - 8, text, anchor, style))

    def render(self, label: str) -> str:
        """The SVG element; `label` says to a screen reader what it shows."""
        body = "".join(self._parts)
        return (
            f'<svg viewBox="0 0 {WIDTH} {self._height}" role="img" '
            f'aria-label="{html.escape(label)}">{body}</svg>'
        )


def make_figure(title: str, content: str, legend: Sequence[tuple[str, str]] = ()) -> str:
    """A drawing with its title and a legend of styles and names."""
    items = "".join(f'<li class="{style}">{html.escape(name)}</li>' for style, name in legend)
    return (
        f'<figure><figcaption>{html.escape(title)}<ul class="legend">{items}</ul></figcaption>'
        f"{content}</figure>"
    )


def _write(x: float, y: float, text: str, anchor: Anchor, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text{kind} {place}>{html.escape(text)}</text>"
