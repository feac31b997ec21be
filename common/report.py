"""Renders report.html: headline, chart by group, training curve, side-by-side examples.

Everything that comes from a model or a data set is escaped, or handed to the page as JSON that its
script shows as text only: it cannot become markup.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.evaluation import SYSTEMS

_TEMPLATE = Path(__file__).with_name("report_template.html")
_EXAMPLES = 500
_CURVE_WIDTH, _CURVE_HEIGHT = 640, 180
_CURVES = (
    ("loss", "Loss on the labels that are learned", ".2f"),
    ("eval_loss", "Loss on held-out labels", ".2f"),
    ("eval_agreement", "Agreement with the teacher on held-out labels", ".0%"),
    ("learning_rate", "Learning rate", ".1e"),
    ("tokens_per_second", "Tokens a second", ",.0f"),
    ("peak_gpu_bytes", "Most GPU memory so far, in bytes", ".2e"),
)
"""What is drawn of the training's history: its name there, a title, a number's format."""

Rows = list[dict[str, Any]]


def render_report(
    run: str,
    metrics: dict[str, Any],
    tables: dict[str, Rows],
    manifests: dict[str, dict[str, Any]],
    history: Rows,
) -> str:
    """The report as one HTML page.

    `tables` has the prediction rows by system, `history` the trainer's log entries.
    """
    parts = {
        "run": html.escape(run),
        "task": html.escape(metrics["task"]),
        "headline": _headline(metrics),
        "bars": "".join(_bars(metrics, group) for group in _groups(metrics)),
        "curves": _curves(history),
        "facts": _facts(metrics, manifests),
        "examples": _embed(_collect_examples(tables)),
    }
    page = _TEMPLATE.read_text("utf-8")
    for name, content in parts.items():
        page = page.replace(f"<!--{name}-->", content)
    return page


def _headline(metrics: dict[str, Any]) -> str:
    name = metrics["main_metric"]
    cards = []
    for system in SYSTEMS:
        figures = metrics["systems"][system][name]
        low, high = figures["interval"]
        cards.append(
            f'<div class="card {system}"><h3>{system}</h3><p class="figure">'
            f"{figures['value']:.1%}</p><p>{low:.1%} – {high:.1%}, n {figures['n']}</p></div>"
        )
    kept = metrics["retention"]
    summary = f"The distilled student gains <b>{100 * metrics['gain']:.1f} points</b> over the base"
    summary += f" and keeps <b>{kept:.0%}</b> of the teacher's score." if kept is not None else "."
    return f'<div class="cards">{"".join(cards)}</div><p>{summary}</p>'


def _groups(metrics: dict[str, Any]) -> Sequence[str]:
    return [g for g, values in metrics["systems"]["base"]["groups"].items() if len(values) > 1]


def _bars(metrics: dict[str, Any], group: str) -> str:
    """A row of bars for each value of a group."""
    name, rows = metrics["main_metric"], []
    for value in metrics["systems"]["base"]["groups"][group]:
        bars = ""
        for system in SYSTEMS:
            figures = metrics["systems"][system]["groups"][group][value][name]
            share = f"{figures['value']:.0%}"
            bars += (
                f'<div class="bar {system}" title="{system} {share}">'
                f'<i style="width:{figures["value"] * 85:.1f}%"></i>{share}</div>'
            )
        n = metrics["systems"]["base"]["groups"][group][value][name]["n"]
        small = " (few rows)" if n < 30 else ""
        rows.append(
            f"<tr><th>{html.escape(value)}<small>n {n}{small}</small></th><td>{bars}</td></tr>"
        )
    return f'<h2>By {html.escape(group)}</h2><table class="bars">{"".join(rows)}</table>'


def _curves(history: Rows) -> str:
    """A small chart for each thing that was measured while the student learned."""
    charts = [
        _curve(title, [(int(h["step"]), float(h[name])) for h in history if name in h], form)
        for name, title, form in _CURVES
    ]
    return "".join(charts) or "<p>No training history.</p>"


def _curve(title: str, points: list[tuple[int, float]], form: str) -> str:
    """An SVG line from 0 to the highest value; nothing where there is no line to draw."""
    if len(points) < 2:
        return ""
    last_step, highest = points[-1][0], max(max(value for _, value in points), 1e-12)
    path = " ".join(
        f"{60 + (_CURVE_WIDTH - 70) * step / last_step:.1f},"
        f"{10 + (_CURVE_HEIGHT - 40) * (1 - value / highest):.1f}"
        for step, value in points
    )
    bottom = _CURVE_HEIGHT - 30
    return (
        f"<h3>{title}</h3>"
        f'<svg viewBox="0 0 {_CURVE_WIDTH} {_CURVE_HEIGHT}" role="img" aria-label="{title}">'
        f'<line x1="60" y1="{bottom}" x2="{_CURVE_WIDTH - 10}" y2="{bottom}"/>'
        f'<polyline points="{path}"/>'
        f'<text x="56" y="18" text-anchor="end">{highest:{form}}</text>'
        f'<text x="56" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{_CURVE_WIDTH - 10}" y="{bottom + 18}" text-anchor="end">'
        f"update {last_step}</text>"
        "</svg>"
    )


def _facts(metrics: dict[str, Any], manifests: dict[str, dict[str, Any]]) -> str:
    """What each step counted, and with which settings it ran."""
    facts: dict[str, Any] = {f"rows: {k}": v for k, v in metrics["rows"].items()}
    for step, manifest in manifests.items():
        for part in ("summary", "counts", "fingerprint"):
            for key, value in manifest.get(part, {}).items():
                facts[f"{step}: {key.replace('_', ' ')}"] = value
    rows = (
        f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>"
        for k, v in facts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _collect_examples(tables: dict[str, Rows]) -> Rows:
    examples = []
    for base, distilled, teacher in zip(
        tables["base"], tables["distilled"], tables["teacher"], strict=True
    ):
        answers = {"base": base, "distilled": distilled, "teacher": teacher}
        examples.append(
            {
                "text": base["text"],
                "reference": (base["references"] or [""])[0],
                **{name: row["prediction"] for name, row in answers.items()},
                "right": [
                    n for n, row in answers.items() if row["prediction"] in row["references"]
                ],
            }
        )
    return examples[:_EXAMPLES]


def _embed(content: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(content, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
