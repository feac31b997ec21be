"""Renders report.html: one file with all figures, charts and answers, which needs no network.

Text of models and data sets is escaped, or embedded as JSON that the script shows as text. As a
second defence, the page's content security policy allows its own script alone, and no requests.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.evaluation.scores import Metrics
from common.evaluation.systems import name_system
from common.metrics.metrics import METRICS
from common.records import PREDICTION_SCHEMA, get_rows
from common.report.charts import draw_bars, draw_curves, draw_legend
from common.report.facts import (
    Facts,
    Manifests,
    flatten,
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
    make_metrics_table,
)
from common.run.manifest import Manifest
from common.run.steps import ADAPTER, LABELS, PREDICTIONS, TrainSummary

_FOLDER = Path(__file__).parent
_MAX_ROWS = 2000
_MAX_CHARACTERS = 8_000_000
"""The most text that the page embeds, so that a phone can open it."""
_COLUMNS = set(PREDICTION_SCHEMA.names)
"""Other columns of predictions are groups."""

Rows = list[dict[str, Any]]


def render_report(
    run: str, metrics: Metrics, tables: dict[str, Rows], manifests: Manifests, history: Rows
) -> str:
    """The report as one HTML page.

    `tables` has the prediction rows by system, `history` the trainer's log entries.
    """
    scores = Scores(metrics)
    script = _read("js")
    parts = {
        "run": html.escape(run),
        "task": html.escape(metrics["task"]),
        "style": _read("css"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "about": html.escape(_describe(scores, manifests)),
        "headline": _render_headline(scores),
        "tables": _render_tables(scores),
        "bars": _render_bars(scores),
        "training": _render_training(manifests, history),
        "labels": _render_facts(list_label_facts(manifests.get(LABELS.folder))),
        "settings": "".join(_render_settings(*item) for item in manifests.items()),
        "examples": _embed(collect_examples(scores, tables)),
    }
    return re.sub(r"<!--(\w+)-->", lambda match: parts[match[1]], _read("html"))


def _read(kind: str) -> str:
    return (_FOLDER / f"template.{kind}").read_text("utf-8")


def _describe(scores: Scores, manifests: Manifests) -> str:
    evaluated = manifests.get(PREDICTIONS.folder)
    finished = evaluated.finished_at if evaluated else ""
    when = f", evaluated {finished.replace('T', ' ').replace('Z', ' UTC')}" if finished else ""
    return list_row_facts(scores.data["rows"]) + when


def _render_headline(scores: Scores) -> str:
    cards = []
    for system in ("base", "distilled", "teacher"):
        figures = scores.get(system)
        interval = scores.format_interval(figures.get("interval"))
        cell = Cell(scores.format(figures["value"]), interval)
        cards.append(_render_card(name_system(system), system, cell))
    cards.append(_render_card("Kept of the teacher's score", "kept", scores.retention()))
    return (
        f'<p class="lead">{html.escape(scores.headline())}</p><div class="cards">{"".join(cards)}'
        f'</div><p class="soft">{html.escape(scores.title(scores.main))}; the small figures are '
        f"95 % intervals. {html.escape(scores.list_unanswered())}</p>"
    )


def _render_card(title: str, style: str, cell: Cell) -> str:
    return (
        f'<div class="card {style}"><h3>{html.escape(title)}</h3>'
        f"<p><strong>{html.escape(cell.text)}</strong><small>{html.escape(cell.note)}</small></p>"
        "</div>"
    )


def _render_tables(scores: Scores) -> str:
    text = render_table(make_metrics_table(scores))
    comparisons = make_comparisons(scores, of_main=True)
    if comparisons.rows:
        text += f"<h2>Differences between systems</h2>{render_table(comparisons)}"
        text += f'<p class="soft">{DETECTABLE}</p>'
    others = make_comparisons(scores, of_main=False)
    if others.rows:
        table = render_table(others)
        text += f"<details><summary>In the other metrics</summary>{table}</details>"
    return text


def render_table(table: Table) -> str:
    """A table as HTML."""
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in table.head)
    rows = "".join(
        f'<tr><th scope="row">{_render_cell(first)}</th>'
        + "".join(f"<td>{_render_cell(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide"><table>{body}</table></div>'


def _render_cell(cell: Cell) -> str:
    note = f"<small>{html.escape(cell.note)}</small>" if cell.note else ""
    return html.escape(cell.text) + note


def _render_bars(scores: Scores) -> str:
    title = html.escape(scores.title(scores.main))
    return "".join(
        f"<h2>{title} by {html.escape(group)}</h2>{draw_legend(scores.systems)}"
        f"{draw_bars(scores, group)}"
        for group in scores.list_groups()
    )


def _render_training(manifests: Manifests, history: Rows) -> str:
    manifest: Manifest[TrainSummary] | None = manifests.get(ADAPTER.folder)
    best = manifest.summary.get("best_update") if manifest else None
    curves = draw_curves(history, best) or '<p class="soft">No curves were kept.</p>'
    facts = [*list_train_facts(manifest), *list_curve_facts(manifests)]
    return _render_facts(facts) + curves


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


def choose_rows(table: pa.Table) -> Rows:
    """The rows of predictions that are shown: those of the lowest ids, in their order."""
    if len(table) > _MAX_ROWS:
        lowest = pc.array_sort_indices(table["id"].combine_chunks())[:_MAX_ROWS]
        table = table.take(lowest.sort())
    return get_rows(table)


def collect_examples(scores: Scores, tables: dict[str, Rows]) -> dict[str, Any]:
    """Some rows with each system's answer, for the page's script."""
    systems = [name for name in scores.systems if name != "copy" and name in tables]
    rows: Rows = []
    characters = 0
    for answers in zip(*(tables[name] for name in systems), strict=True):
        row = _collect_row(scores.main, dict(zip(systems, answers, strict=True)))
        characters += len(row["text"]) + sum(len(a["text"]) for a in row["answers"].values())
        if characters > _MAX_CHARACTERS:
            break
        rows.append(row)
    names = sorted({name for row in rows for name in row["groups"]})
    found = {name: {row["groups"].get(name) for row in rows} - {None} for name in names}
    return {
        "total": scores.data["rows"]["test"],
        "systems": [{"key": name, "name": name_system(name)} for name in systems],
        "groups": {name: sorted(values) for name, values in found.items() if len(values) > 1},
        "rewrites": _are_rewrites(rows),
        "rows": rows,
    }


def _collect_row(metric: str, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = next(iter(answers.values()))
    return {
        "id": row.get("id", ""),
        "text": row["text"],
        "references": list(row["references"] or []),
        "groups": {k: str(v) for k, v in row.items() if k not in _COLUMNS and v is not None},
        "answers": {
            system: {
                "text": answer["prediction"] or "",
                "is_right": _is_right(metric, answer),
                "error": answer.get("error"),
            }
            for system, answer in answers.items()
        },
    }


def _is_right(metric: str, answer: dict[str, Any]) -> bool:
    """By the main metric if it is a share, else by exact match."""
    found = METRICS.get(metric)
    judge = found if found and found.is_share else METRICS["exact_match"]
    texts, predictions = [answer["text"]], [answer["prediction"] or ""]
    return bool(judge.measure(texts, predictions, [answer["references"] or []])[0, 0])


def _are_rewrites(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether most references share 40 % of their words with the text, so that a diff is useful."""
    pairs = [
        (set(r["text"].split()), set(r["references"][0].split())) for r in rows if r["references"]
    ]
    alike = [len(a & b) >= 0.4 * max(len(a), len(b)) for a, b in pairs]
    return sum(alike) > len(alike) / 2


def _embed(content: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
