"""The report's charts without scripts: bars in HTML, curves in SVG."""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from common.evaluation.scores import Figure
from common.evaluation.systems import SYSTEMS, name_system
from common.report.tables import Scores, count_rows, is_small

_MAX_SLICES = 40
_MAX_POINTS = 300
_WIDTH, _HEIGHT = 400, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 390, 22, 164


class _Chart(NamedTuple):
    """A chart of the training; `lines` has the names of the history's keys."""

    title: str
    form: str
    lines: dict[str, str]


_CHARTS = (
    _Chart("Loss", ".2f", {"loss": "labels that are learned", "eval_loss": "held-out labels"}),
    _Chart("Agreement with the teacher on held-out labels", ".0%", {"eval_agreement": ""}),
    _Chart("Learning rate", ".4g", {"learning_rate": ""}),
    _Chart("Tokens a second", ",.0f", {"tokens_per_second": ""}),
    _Chart("Most GPU memory so far, GiB", ".1f", {"peak_gpu_gib": ""}),
)


def draw_legend(systems: Sequence[str]) -> str:
    """A list of the systems' colours."""
    items = (f'<li class="{_class(s)}">{html.escape(name_system(s))}</li>' for s in systems)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _class(system: str) -> str:
    return system if system in SYSTEMS else "other"


def draw_bars(scores: Scores, group: str) -> str:
    """Bars of the main metric over all rows, then by value of a group."""
    everything = {s: scores.get(s) for s in scores.systems if scores.get(s)["value"] is not None}
    slices = list(scores.list_slices(group).items())
    figures = [f for _, by in [("", everything), *slices] for f in by.values()]
    top = 1.0 if scores.is_share(scores.main) else _find_top(figures)
    rows = [_draw_slice(scores, "all", everything, top)]
    rows += [_draw_slice(scores, value, by, top) for value, by in slices[:_MAX_SLICES]]
    if len(slices) > _MAX_SLICES:
        rows.append(f"<p>{len(slices) - _MAX_SLICES} more are in report.md.</p>")
    return f'<div class="slices">{"".join(rows)}</div>'


def _find_top(figures: Sequence[Figure]) -> float:
    """The highest value or bound, as the end of the bars' scale."""
    drawn: list[float] = [1e-9]
    for f in figures:
        drawn += [f["value"] or 0.0, *(f.get("interval") or [])]
    return max(drawn)


def _draw_slice(scores: Scores, value: str, by_system: dict[str, Figure], top: float) -> str:
    bars = "".join(_draw_bar(scores, system, f, top) for system, f in by_system.items())
    n = max((f.get("n", 0) for f in by_system.values()), default=0)
    few = any(is_small(f) for f in by_system.values())
    note = count_rows(n) + (' <em class="few">few rows</em>' if few else "")
    return (
        f'<div class="slice"><h3>{html.escape(value)} <small>{note}</small></h3>'
        f'<div class="bars">{bars}</div></div>'
    )


def _draw_bar(scores: Scores, system: str, figures: Figure, top: float) -> str:
    if figures["value"] is None:
        return ""
    interval = figures.get("interval")
    text = f"{name_system(system)}: {scores.format(figures['value'])}"
    whisker = ""
    if interval:
        low, high = (_percent(bound, top) for bound in interval)
        text += f" ({scores.format_interval(interval)})"
        whisker = f'<b style="left:{low:.1f}%;width:{high - low:.1f}%"></b>'
    return (
        f'<div class="bar {_class(system)}" role="img" aria-label="{html.escape(text)}"'
        f' title="{html.escape(text)}"><span class="track">'
        f'<i style="width:{_percent(figures["value"], top):.1f}%"></i>{whisker}</span>'
        f'<span class="figure">{scores.format(figures["value"])}</span></div>'
    )


def _percent(value: float, top: float) -> float:
    return 100 * min(max(value / top, 0.0), 1.0)


def draw_curves(history: Sequence[dict[str, Any]], best: int | None) -> str:
    """Charts of the training's history; `best` is the update whose weights are kept."""
    entries = [_in_gib(entry) for entry in history]
    charts = "".join(_draw_chart(chart, entries, best) for chart in _CHARTS)
    return f'<div class="curves">{charts}</div>' if charts else ""


def _in_gib(entry: dict[str, Any]) -> dict[str, Any]:
    peak = entry.get("peak_gpu_bytes")
    return entry | {"peak_gpu_gib": peak / 2**30} if peak else entry


def _find_points(entries: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Values by update, thinned to 300 or so, with the last."""
    points = [(int(e["step"]), float(e[key])) for e in entries if e.get(key) is not None]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    stride = len(points) // _MAX_POINTS + 1
    return [p for i, p in enumerate(points) if i % stride == 0 or i == len(points) - 1]


def _draw_chart(chart: _Chart, entries: Sequence[dict[str, Any]], best: int | None) -> str:
    """A chart over the updates, from 0 up; empty without a line."""
    found = {key: _find_points(entries, key) for key in chart.lines}
    lines = {key: points for key, points in found.items() if len(points) > 1}
    if not lines:
        return ""
    last = max(points[-1][0] for points in lines.values())
    ticks = _find_ticks(max(value for points in lines.values() for _, value in points))

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (_RIGHT - _LEFT) * step / max(last, 1)
        return x, _BOTTOM - (_BOTTOM - _TOP) * value / ticks[-1]

    body = "".join(_draw_tick(place(0, tick)[1], f"{tick:{chart.form}}") for tick in ticks)
    body += _draw_best(place(best, 0)[0], best) if best and best <= last else ""
    for number, points in enumerate(lines.values()):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        body += f'<polyline class="line{number}" points="{path}"/>'
    body += _draw_text(_LEFT, _BOTTOM + 18, "0", "middle")
    body += _draw_text(_RIGHT, _BOTTOM + 18, f"update {last:,}", "end")
    names = [name for key, name in chart.lines.items() if key in lines and name]
    legend = "".join(f'<li class="line{i}">{name}</li>' for i, name in enumerate(names))
    return (
        f'<figure><figcaption>{chart.title}<ul class="legend">{legend}</ul></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{chart.title}">{body}</svg>'
        "</figure>"
    )


def _find_ticks(highest: float) -> list[float]:
    """From 0 to just above the highest value, in 2 to 5 round steps."""
    highest = max(highest, 1e-12)
    magnitude = 10.0 ** math.floor(math.log10(highest))
    step = next(s * magnitude for s in (0.2, 0.25, 0.5, 1, 2) if highest / (s * magnitude) <= 5)
    return [i * step for i in range(math.ceil(highest / step - 1e-9) + 1)]


def _draw_tick(y: float, text: str) -> str:
    line = f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}"/>'
    return line + _draw_text(_LEFT - 6, y + 4, text, "end")


def _draw_best(x: float, best: int) -> str:
    """A mark at the update whose weights are kept."""
    line = f'<line class="best" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}"/>'
    anchor = "end" if x > 0.8 * _RIGHT else "middle"
    return line + _draw_text(x, _TOP - 6, f"kept: {best:,}", anchor)


def _draw_text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
