"""Bars of the main metric, in HTML: of all systems, and by value of a group."""

import html
from collections.abc import Sequence

from common.evaluation.scores import Figure
from common.evaluation.systems import SYSTEMS, name_system
from common.report.tables import Scores, count_rows, is_small

_MAX_SLICES = 40


def draw_legend(systems: Sequence[str]) -> str:
    """A list of the systems' colours."""
    items = (f'<li class="{_class(s)}">{html.escape(name_system(s))}</li>' for s in systems)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _class(system: str) -> str:
    return system if system in SYSTEMS else "other"


def draw_systems(scores: Scores) -> str:
    """A bar of the main metric for each system, with its name, value and interval."""
    found = {system: scores.get(system) for system in scores.systems}
    found = {s: figures for s, figures in found.items() if figures["value"] is not None}
    top = 1.0 if scores.is_share(scores.main) else find_top(list(found.values()))
    rows = "".join(
        f'<div class="system"><h3>{html.escape(name_system(system))}</h3>'
        f"{_draw_bar(scores, system, figures, top)}"
        f"<small>{scores.format_interval(figures.get('interval'))}</small></div>"
        for system, figures in found.items()
    )
    return f'<div class="systems">{rows}</div>'


def draw_bars(scores: Scores, group: str) -> str:
    """Bars of the main metric by value of a group."""
    slices = list(scores.list_slices(group).items())
    figures = [f for _, by in slices for f in by.values()]
    top = 1.0 if scores.is_share(scores.main) else find_top(figures)
    rows = [draw_slice(scores, value, by, top) for value, by in slices[:_MAX_SLICES]]
    if len(slices) > _MAX_SLICES:
        rows.append(f"<p>{len(slices) - _MAX_SLICES} more are in report.md.</p>")
    return f'<div class="slices">{"".join(rows)}</div>'


def find_top(figures: Sequence[Figure]) -> float:
    """The highest value or bound, as the end of the bars' scale."""
    drawn: list[float] = [1e-9]
    for f in figures:
        drawn += [f["value"] or 0.0, *(f.get("interval") or [])]
    return max(drawn)


def draw_slice(scores: Scores, value: str, by_system: dict[str, Figure], top: float) -> str:
    """The systems' bars in one group of rows, on a scale that ends at `top`."""
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
