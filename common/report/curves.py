"""Curves of the training: its history by update, and agreement by the number of labels."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

from common.metrics.statistics import wilson_interval
from common.report.plot import Plot, find_ticks, make_axis, make_figure
from common.run.steps import CurveSummary
from common.training.curve import Gain

_MAX_POINTS = 300


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


def draw_curves(history: Sequence[dict[str, Any]], best: int | None) -> str:
    """Charts of the training's history; `best` is the update whose weights are kept."""
    entries = [_in_gib(entry) for entry in history]
    charts = "".join(_draw_chart(chart, entries, best) for chart in _CHARTS)
    return f'<div class="plots">{charts}</div>' if charts else ""


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
    highest = max(value for points in lines.values() for _, value in points)
    updates = make_axis("update", [0, max(last, 1)], ",.0f")
    plot = Plot(updates, make_axis("", find_ticks(0, max(highest, 0)), chart.form), height=200)
    if best and best <= last:
        plot.add_mark(best, f"kept: {best:,}")
    for number, points in enumerate(lines.values()):
        plot.add_line(points, f"line{number}")
    names = [chart.lines[key] for key in lines]
    legend = [(f"line{i}", name) for i, name in enumerate(names) if name]
    return make_figure(chart.title, plot.render(chart.title), legend)


def draw_learning(
    curves: Mapping[str, CurveSummary], gain: Gain | None = None, more: int = 0
) -> str:
    """Agreement with the teacher by the number of labels, a line for each curve by its name.

    `gain` is what `more` labels would bring to the only curve, drawn as a broken line.
    """
    lines = {name: sorted(c["points"]) for name, c in curves.items() if len(c["points"]) > 1}
    if not lines:
        return ""
    bounds = [
        wilson_interval(share, curves[name]["held_out"])
        for name, points in lines.items()
        for _, share in points
    ]
    sizes = [count for points in lines.values() for count, _ in points]
    highest, low, high = max(sizes), min(b[0] for b in bounds), max(b[1] for b in bounds)
    if gain:
        high = max(high, max(points[-1][1] for points in lines.values()) + gain.high)
    x = make_axis("labels", find_ticks(0, highest + (more if gain else 0)), ",.0f")
    plot = Plot(x, make_axis("", find_ticks(low, min(high, 1.0)), ".0%"), height=240)
    styles = cycle(f"line{i}" for i in range(6)) if len(lines) > 1 else cycle(["distilled"])
    legend = []
    for (name, points), style in zip(lines.items(), styles, strict=False):
        _add_curve(plot, points, curves[name]["held_out"], style)
        legend += [(style, name)] if name else []
    if gain:
        _add_gain(plot, next(iter(lines.values()))[-1], gain, more)
    title = "Agreement with the teacher on held-out labels"
    told = "; ".join(f"{name} {describe_points(points)}".strip() for name, points in lines.items())
    return make_figure(title, plot.render(f"{title}. {told}"), legend)


def _add_curve(plot: Plot, points: list[tuple[int, float]], rows: int, style: str) -> None:
    plot.add_line(points, style)
    for count, share in points:
        plot.add_whisker(count, *wilson_interval(share, rows), style)
        plot.add_dot(count, share, style)


def _add_gain(plot: Plot, last: tuple[int, float], gain: Gain, more: int) -> None:
    count, share = last
    ahead = min(share + gain.value, 1.0)
    plot.add_line([last, (count + more, ahead)], "distilled ahead")
    plot.add_whisker(count + more, share + gain.low, min(share + gain.high, 1.0), "distilled")
    plot.add_dot(count + more, ahead, "hollow distilled")


def describe_points(points: Sequence[tuple[int, float]]) -> str:
    """`66.2% with 226, 67.0% with 452`."""
    return ", ".join(f"{share:.1%} with {count:,}" for count, share in points)
