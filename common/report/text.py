"""Renders report.md: the figures of report.html, for a terminal or a pull request."""

import re

from common.evaluation.scores import Metrics
from common.report.decision_charts import describe_calibration, make_cascade_table
from common.report.facts import (
    Manifests,
    list_curve_facts,
    list_label_facts,
    list_row_facts,
    list_train_facts,
)
from common.report.tables import (
    DETECTABLE,
    Cell,
    Scores,
    Table,
    make_comparisons,
    make_group_table,
    make_metrics_table,
)
from common.report.verdict import decide
from common.run.steps import ADAPTER, LABELS


def render_text(run: str, metrics: Metrics, manifests: Manifests) -> str:
    """The report as Markdown."""
    scores = Scores(metrics)
    title = f"# Distillation of {escape(metrics['task'])}: {escape(run)}"
    parts = [title, render_summary(scores, make_metrics_table(scores))]
    if cascade := make_cascade_table(scores):
        parts += ["## Student first, teacher for the rest", render_table(cascade)]
    if confidence := scores.data.get("confidence"):
        parts += ["## Does the student know when it is right?", describe_calibration(confidence)]
    comparisons = [make_comparisons(scores, of_main) for of_main in (True, False)]
    if comparisons[0].rows:
        tables = [render_table(table) for table in comparisons if table.rows]
        parts += ["## Differences between systems", *tables, DETECTABLE]
    for group in scores.list_groups():
        title = escape(scores.title(scores.main))
        parts += [f"## {title} by {escape(group)}", render_table(make_group_table(scores, group))]
    for title, facts in (
        ("Labels", list_label_facts(manifests.get(LABELS.folder))),
        (
            "Training",
            [*list_train_facts(manifests.get(ADAPTER.folder)), *list_curve_facts(manifests)],
        ),
    ):
        if facts:
            parts += [f"## {title}", "\n".join(f"- {name}: {escape(text)}" for name, text in facts)]
    return "\n\n".join(parts) + "\n"


def render_summary(scores: Scores, table: Table) -> str:
    """The verdict, a table of all systems' scores, and what is behind it."""
    verdict = decide(scores)
    reasons = [f"- {s.title}: {escape(s.text)}" for s in verdict.statements]
    lines = [escape(verdict.lead), render_table(table), "\n".join(reasons)]
    kept = scores.retention()
    kept_note = f"Kept of the teacher's score: {_format_cell(kept)}. " if kept.note else ""
    rows = list_row_facts(scores.data["rows"])
    notes = f"{kept_note}{rows}; in brackets, 95 % intervals. {scores.list_unanswered()}"
    return "\n\n".join([*lines, notes.strip()])


def render_table(table: Table) -> str:
    """A Markdown table, its columns aligned for a terminal."""
    lines = [[escape(title) for title in table.head]]
    lines += [[_format_cell(cell) for cell in row] for row in table.rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(table.head))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([t.ljust(w) for t, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _format_cell(cell: Cell) -> str:
    return escape(f"{cell.text} ({cell.note})" if cell.note else cell.text)


def escape(text: str) -> str:
    """Text without Markdown markup, table breaks or control characters."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"[\\`*|\[\]]|<(?=\S)|&(?=[#\w])", r"\\\g<0>", plain)
