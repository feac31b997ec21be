"""The answers side by side: what the page's script gets to show, and the kinds of rows."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.evaluation.confidence import SIGNALS, read_signals
from common.evaluation.decision import read_calibration
from common.evaluation.scores import find_judge
from common.evaluation.systems import name_system
from common.metrics.metrics import METRICS
from common.records import PREDICTION_SCHEMA, get_rows
from common.report.tables import Scores

_MAX_ROWS = 2000
_MAX_CHARACTERS = 8_000_000
"""The most text that the page embeds, so that a phone can open it."""
_COLUMNS = set(PREDICTION_SCHEMA.names)
"""Other columns of predictions are groups."""

Rows = list[dict[str, Any]]


def choose_rows(table: pa.Table) -> Rows:
    """The rows of predictions that are shown: those of the lowest ids, in their order."""
    if len(table) > _MAX_ROWS:
        lowest = pc.array_sort_indices(table["id"].combine_chunks())[:_MAX_ROWS]
        table = table.take(lowest.sort())
    return get_rows(table)


def collect_answers(scores: Scores, tables: dict[str, Rows]) -> dict[str, Any]:
    """Some rows with each system's answer, for the page's script."""
    systems = [name for name in scores.systems if name != "copy" and name in tables]
    confidence = _estimate_confidence(scores, tables.get("distilled", []))
    rows: Rows = []
    characters = 0
    for number, answers in enumerate(zip(*(tables[name] for name in systems), strict=True)):
        row = _collect_row(scores.main, dict(zip(systems, answers, strict=True)))
        characters += len(row["text"]) + sum(len(a["text"]) for a in row["answers"].values())
        if characters > _MAX_CHARACTERS:
            break
        rows.append(row | ({"confidence": confidence[number]} if confidence else {}))
    names = sorted({name for row in rows for name in row["groups"]})
    found = {name: {row["groups"].get(name) for row in rows} - {None} for name in names}
    cascade = scores.data.get("cascade")
    chosen = cascade["chosen"] if cascade and cascade["holds"] else None
    return {
        "total": scores.data["rows"]["test"],
        "systems": [{"key": name, "name": name_system(name)} for name in systems],
        "groups": {name: sorted(values) for name, values in found.items() if len(values) > 1},
        "rewrites": _are_rewrites(rows),
        "threshold": chosen["threshold"] if chosen and confidence else None,
        "rows": rows,
    }


def _estimate_confidence(scores: Scores, rows: Rows) -> list[float] | None:
    """The student's confidence in each of its answers; None if it is not recorded."""
    facts = scores.data.get("confidence")
    if not facts or not rows or not set(SIGNALS) <= rows[0].keys():
        return None
    columns = {name: pa.array([row[name] for row in rows], pa.float64()) for name in SIGNALS}
    signals = read_signals(pa.table(columns))
    if signals is None:
        return None
    return [float(c) for c in read_calibration(facts).estimate(signals)]


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
    """By the main metric if it is a share, else, or if it is an unknown one, by exact match."""
    judge = METRICS[find_judge(metric) if metric in METRICS else "exact_match"]
    texts, predictions = [answer["text"]], [answer["prediction"] or ""]
    return bool(judge.measure(texts, predictions, [answer["references"] or []])[0, 0])


def _are_rewrites(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether most references share 40 % of their words with the text, so that a diff is useful."""
    pairs = [
        (set(r["text"].split()), set(r["references"][0].split())) for r in rows if r["references"]
    ]
    alike = [len(a & b) >= 0.4 * max(len(a), len(b)) for a, b in pairs]
    return sum(alike) > len(alike) / 2
