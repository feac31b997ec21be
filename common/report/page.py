"""Renders report.html: one file with all figures, charts and answers, which needs no network.

Text of models and data sets is escaped, or embedded as JSON that the script shows as text. As a
second defence, the page's content security policy allows its own script alone, and no requests.
"""

import html
from typing import Any

from common.evaluation.scores import Metrics
from common.evaluation.systems import name_system
from common.report.answers import Rows, collect_answers
from common.report.bars import draw_bars, draw_legend, draw_systems
from common.report.curves import draw_curves, draw_learning
from common.report.decision_charts import (
    describe_calibration,
    draw_calibration,
    draw_cascade,
    make_calibration_table,
    make_cascade_table,
)
from common.report.facts import (
    MORE,
    Facts,
    Manifests,
    flatten,
    list_curve_facts,
    list_label_facts,
    list_row_facts,
    list_saving_facts,
    list_train_facts,
)
from common.report.frame import embed, render_frame, render_section, render_table
from common.report.tables import (
    DETECTABLE,
    Cell,
    Scores,
    Table,
    make_comparisons,
    make_metrics_table,
    transpose,
)
from common.report.verdict import decide, find_strongest, format_usd
from common.run.manifest import Manifest
from common.run.steps import ADAPTER, CURVE, LABELS, PREDICTIONS, TrainSummary
from common.training.curve import predict_gain


def render_report(
    run: str, metrics: Metrics, tables: dict[str, Rows], manifests: Manifests, history: Rows
) -> str:
    """The report as one HTML page.

    `tables` has the prediction rows by system, `history` the trainer's log entries.
    """
    scores = Scores(metrics)
    parts = {
        "run": html.escape(run),
        "task": html.escape(metrics["task"]),
        "about": html.escape(_describe(scores, manifests)),
        "verdict": _render_verdict(scores),
        "systems": _render_systems(scores),
        "learning": _render_learning(manifests),
        "cascade": _render_cascade(scores),
        "calibration": _render_calibration(scores),
        "groups": _render_groups(scores),
        "tables": _render_tables(scores),
        "costs": _render_costs(scores, manifests),
        "training": _render_training(manifests, history),
        "settings": "".join(_render_settings(*item) for item in manifests.items()),
        "answers": embed(collect_answers(scores, tables)),
    }
    return render_frame(f"Distillation of {metrics['task']}: {run}", "report.html", parts)


def _describe(scores: Scores, manifests: Manifests) -> str:
    evaluated = manifests.get(PREDICTIONS.folder)
    finished = evaluated.finished_at if evaluated else ""
    when = f", evaluated {finished.replace('T', ' ').replace('Z', ' UTC')}" if finished else ""
    return list_row_facts(scores.data["rows"]) + when


def _render_verdict(scores: Scores) -> str:
    verdict = decide(scores)
    cards = "".join(_render_card(*card) for card in _list_cards(scores))
    items = "".join(
        f"<div{_CLASS_AGAINST * s.is_warning}><dt>{html.escape(s.title)}</dt>"
        f"<dd>{html.escape(s.text)}</dd></div>"
        for s in verdict.statements
    )
    note = f"{scores.title(scores.main)}; in small figures and brackets, 95\u00a0% intervals."
    return (
        f'<p class="lead">{html.escape(verdict.lead)}</p><div class="cards">{cards}</div>'
        f'<dl class="reasons">{items}</dl><p class="soft">{html.escape(note)} '
        f"{html.escape(scores.list_unanswered())}</p>"
    )


_CLASS_AGAINST = ' class="against"'


def _list_cards(scores: Scores) -> list[tuple[str, str, Cell]]:
    """Title, style and figure of the four numbers to remember."""
    kept = ("Kept of the teacher's score", "kept", scores.retention())
    cascade, savings = scores.data.get("cascade"), scores.data.get("savings")
    chosen = cascade["chosen"] if cascade and cascade["holds"] else None
    if not chosen or not cascade:
        systems = (find_strongest(scores), "distilled", "teacher")
        return [*(_make_card(scores, system) for system in systems), kept]
    share = Cell(f"{chosen['share']:.0%}", f"on {cascade['rows']:,} unseen rows")
    cards = [_make_card(scores, "distilled"), kept, ("Answered by the student", "share", share)]
    saved = savings.get("saved_usd_per_million") if savings else None
    if saved is None:
        return [*cards, _make_card(scores, "teacher")]
    amount = format_usd(saved) if saved >= 0 else f"−{format_usd(-saved)}"
    teacher = format_usd(1000 * (savings["teacher_usd_per_1000"] or 0.0)) if savings else ""
    return [*cards, ("Saved for a million inputs", "saved", Cell(amount, f"of {teacher}"))]


def _make_card(scores: Scores, system: str) -> tuple[str, str, Cell]:
    figures = scores.get(system)
    interval = scores.format_interval(figures.get("interval"))
    return name_system(system), system, Cell(scores.format(figures["value"]), interval)


def _render_card(title: str, style: str, cell: Cell) -> str:
    return (
        f'<div class="card {style}"><h3>{html.escape(title)}</h3>'
        f"<p><strong>{html.escape(cell.text)}</strong><small>{html.escape(cell.note)}</small></p>"
        "</div>"
    )


def _render_systems(scores: Scores) -> str:
    title = html.escape(scores.title(scores.main))
    return render_section(f"{title} of all systems", draw_systems(scores))


def _fold(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _render_learning(manifests: Manifests) -> str:
    curve = manifests.get(CURVE.folder)
    if curve is None:
        return ""
    gain = predict_gain(curve.summary["points"], curve.summary["held_out"], MORE)
    drawn = draw_learning({"": curve.summary}, gain, MORE)
    facts = _render_facts(list_curve_facts(manifests)) if drawn else ""
    return render_section(
        "What more labels would bring", f'<div class="beside">{drawn}{facts}</div>' if drawn else ""
    )


def _render_cascade(scores: Scores) -> str:
    drawn, table = draw_cascade(scores), make_cascade_table(scores)
    if not drawn or table is None:
        return ""
    note = (
        "The student answers first, and hands over to the teacher what it is not sure of. Measured "
        "on the half of the test rows without a say in it. The band is the 95\u00a0% interval."
    )
    if scores.data.get("savings", {}).get("student_usd_per_1000") == 0:
        note += " The student's machine costs nothing here: DISTILL_EVALUATE__USD_PER_HOUR is 0."
    folded = _fold("These figures as a table", render_table(table))
    return render_section(
        "Student first, teacher for the rest",
        f'<p class="soft">{note}</p><div class="plots">{drawn}</div>{folded}',
    )


def _render_calibration(scores: Scores) -> str:
    facts, drawn = scores.data.get("confidence"), draw_calibration(scores)
    if not facts or not drawn:
        return ""
    text = html.escape(describe_calibration(facts))
    table = render_table(make_calibration_table(facts))
    return render_section(
        "Does the student know when it is right?",
        f'<div class="beside">{drawn}<div><p>{text}</p>{_fold("These figures as a table", table)}'
        "</div></div>",
    )


def _render_groups(scores: Scores) -> str:
    title = html.escape(scores.title(scores.main))
    return "".join(
        render_section(
            f"{title} by {html.escape(group)}",
            draw_legend(scores.systems) + draw_bars(scores, group),
        )
        for group in scores.list_groups()
    )


def _render_tables(scores: Scores) -> str:
    table = render_table(transpose(make_metrics_table(scores), "Metric"))
    text = render_section("All metrics", f'<div class="metrics">{table}</div>')
    comparisons = make_comparisons(scores, of_main=True)
    folded = ""
    if others := make_comparisons(scores, of_main=False).rows:
        folded = _fold("In the other metrics", render_table(Table(comparisons.head, others)))
    if comparisons.rows:
        shown = f'{render_table(comparisons)}<p class="soft">{DETECTABLE}</p>'
        text += render_section("Differences between systems", shown + folded)
    elif folded:
        text += render_section("Differences between systems", folded)
    return text


def _render_costs(scores: Scores, manifests: Manifests) -> str:
    facts = list_label_facts(manifests.get(LABELS.folder))
    return _render_facts([*list_saving_facts(scores.data.get("savings")), *facts])


def _render_training(manifests: Manifests, history: Rows) -> str:
    manifest: Manifest[TrainSummary] | None = manifests.get(ADAPTER.folder)
    best = manifest.summary.get("best_update") if manifest else None
    curves = draw_curves(history, best) or '<p class="soft">No curves were kept.</p>'
    return _render_facts(list_train_facts(manifest)) + curves


def _render_facts(facts: Facts) -> str:
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>"
        for name, text in facts
    )
    return f"<dl>{items}</dl>" if facts else '<p class="soft">Nothing is known.</p>'


def _render_settings(step: str, manifest: Manifest[Any]) -> str:
    """A step's manifest, folded."""
    table = Table(["Name", "Value"], [[Cell(k), Cell(v)] for k, v in flatten(manifest.to_json())])
    version = html.escape(manifest.code_version)
    title = f"{step} <small>distill {version}</small>" if version else step
    return (
        f'<details><summary>{title}</summary><div class="raw">{render_table(table)}</div></details>'
    )
