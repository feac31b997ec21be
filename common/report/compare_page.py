"""Renders compare.html, which looks like a report, and the same tables as text."""

import html
from collections.abc import Sequence

from common.report.bars import draw_legend, draw_slice, find_top
from common.report.compare import (
    ComparedRun,
    make_cost_table,
    make_difference_table,
    make_score_table,
    make_settings_table,
)
from common.report.curves import draw_learning
from common.report.frame import render_frame, render_section, render_table
from common.report.tables import DETECTABLE, Table
from common.report.text import render_table as render_text_table
from common.report.verdict import decide
from common.run.steps import CURVE

_SAME = "Nothing: the settings are the same."
_PAIRS = "Both students on the same rows. "


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """The page of several runs."""
    settings = make_settings_table(runs)
    differ = render_table(settings) if settings.rows else f'<p class="soft">{_SAME}</p>'
    differences = render_table(make_difference_table(runs))
    scores = f'{_draw_runs(runs)}<div class="metrics">{render_table(make_score_table(runs))}</div>'
    sections = [
        ("What each run says", _render_leads(runs)),
        (html.escape(_name_metric(runs)), scores),
        (
            "Differences between the distilled students",
            f'{differences}<p class="soft">{_PAIRS}{DETECTABLE}</p>',
        ),
        ("Agreement by labels", _draw_curves(runs)),
        ("Settings that differ", f'<div class="metrics">{differ}</div>'),
        ("Costs and seconds", render_table(make_cost_table(runs))),
    ]
    names = ", ".join(run.name for run in runs)
    parts = {
        "names": html.escape(names),
        "sections": "".join(render_section(title, content) for title, content in sections),
    }
    return render_frame(f"Comparison of {names}", "compare.html", parts)


def _name_metric(runs: Sequence[ComparedRun]) -> str:
    titles = dict.fromkeys(run.scores.title(run.scores.main) for run in runs)
    return f"{' and '.join(titles)} of all systems"


def _render_leads(runs: Sequence[ComparedRun]) -> str:
    items = "".join(
        f"<div><dt>{html.escape(run.name)}</dt><dd>{html.escape(decide(run.scores).lead)}</dd></div>"
        for run in runs
    )
    return f'<dl class="reasons">{items}</dl>'


def _draw_runs(runs: Sequence[ComparedRun]) -> str:
    systems = list(dict.fromkeys(s for run in runs for s in run.scores.systems))
    found = [
        {s: run.scores.get(s) for s in systems if run.scores.get(s)["value"] is not None}
        for run in runs
    ]
    shares = all(run.scores.is_share(run.scores.main) for run in runs)
    top = 1.0 if shares else find_top([f for figures in found for f in figures.values()])
    rows = "".join(
        draw_slice(run.scores, run.name, figures, top)
        for run, figures in zip(runs, found, strict=True)
    )
    return f'{draw_legend(systems)}<div class="slices">{rows}</div>'


def _draw_curves(runs: Sequence[ComparedRun]) -> str:
    curves = {run.name: run.manifests.get(CURVE.folder) for run in runs}
    return draw_learning({name: curve.summary for name, curve in curves.items() if curve})


def render_comparison_text(runs: Sequence[ComparedRun]) -> str:
    """The tables of several runs as Markdown."""
    settings = make_settings_table(runs)
    tables: list[Table | str] = [
        make_score_table(runs),
        make_difference_table(runs),
        settings if settings.rows else f"Settings that differ: {_SAME.lower()}",
        make_cost_table(runs),
    ]
    return "\n\n".join(t if isinstance(t, str) else render_text_table(t) for t in tables)
