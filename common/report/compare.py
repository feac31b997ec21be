"""Runs side by side: scores, paired differences, settings that differ, costs and seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from common.evaluation.scores import Figure, compare
from common.evaluation.systems import name_system
from common.labels.progress import format_seconds
from common.metrics.metrics import METRICS
from common.report.facts import Facts, Manifests, flatten
from common.report.tables import Cell, Scores, Table, count_rows, format_p, make_cell
from common.report.verdict import format_usd
from common.run.steps import ADAPTER, LABELS, PREDICTIONS
from common.settings import find_default

_NOTHING = "–"
_OWN = ("run", "storage.", "report.")
"""Settings that differ between any two runs."""


@dataclass(frozen=True)
class ComparedRun:
    """A run; `answers` is the distilled student's predictions table, if it is what was scored."""

    name: str
    scores: Scores
    manifests: Manifests
    answers: pa.Table | None


def make_score_table(runs: Sequence[ComparedRun]) -> Table:
    """The main metric of each system, by run."""
    systems = [s for run in runs for s in run.scores.systems]
    systems = list(dict.fromkeys(systems))
    has_one_metric = len({run.scores.main for run in runs}) == 1
    rows = []
    for run in runs:
        scores = run.scores
        title = Cell(run.name, "" if has_one_metric else scores.title(scores.main))
        figures: list[Figure] = [scores.by_system.get(s, {}).get(scores.main, {}) for s in systems]
        cells = [make_cell(scores, found) for found in figures]
        count = Cell(f"{scores.data['rows']['test']:,}")
        rows.append([title, *cells, scores.retention(), count])
    head = ["Run", *map(name_system, systems), "Kept of the teacher's score", "Test rows"]
    return Table(head, rows)


def make_difference_table(runs: Sequence[ComparedRun]) -> Table:
    """The distilled students of the other runs beside that of the first one, on the same rows."""
    first, *others = runs
    rows = []
    for run in others:
        title = Cell(f"{run.name} – {first.name}")
        if reason := _explain_no_pairs(first, run):
            rows.append([title, Cell(reason), Cell(""), Cell("")])
            continue
        found = _compare_pairs(first, run)
        metric = run.scores.main
        change = run.scores.format_difference(found["difference"], metric)
        bounds = run.scores.format_bounds(found["interval"], metric)
        least = run.scores.format_difference(found["smallest"], metric).removeprefix("+")
        rows.append([title, Cell(change, bounds), Cell(format_p(found["p_value"])), Cell(least)])
    head = "Distilled students, " + first.scores.title(first.scores.main)
    return Table([head, "Difference", "p value", "Detectable from"], rows)


def _explain_no_pairs(first: ComparedRun, run: ComparedRun) -> str:
    """Why two runs have no paired difference; empty if they have one."""
    if first.scores.main != run.scores.main or run.scores.main not in METRICS:
        return "another main metric"
    if first.answers is None or run.answers is None:
        return "predictions are missing"
    one, other = (set(table["id"].to_pylist()) for table in (first.answers, run.answers))
    if one != other:
        return f"not the same test rows: {count_rows(len(one & other))} in both"
    return ""


def _compare_pairs(first: ComparedRun, run: ComparedRun) -> Any:
    """The `Comparison` of two runs' distilled students, with the references of the first."""
    assert first.answers is not None
    assert run.answers is not None
    tables = [table.sort_by("id") for table in (first.answers, run.answers)]
    texts, references = (tables[0][name].to_pylist() for name in ("text", "references"))
    metric = METRICS[run.scores.main]
    one, other = (
        metric.measure(
            texts,
            [text or "" for text in table["prediction"].to_pylist()],
            [list(of or []) for of in references],
        )
        for table in tables
    )
    return compare(run.scores.main, run.name, first.name, other, one)


def make_settings_table(runs: Sequence[ComparedRun]) -> Table:
    """The settings and versions that are not the same in all runs."""
    found = [_list_settings(run.manifests) for run in runs]
    names = sorted({name for settings in found for name in settings})
    rows = []
    for name in names:
        values = [settings.get(name) or _describe_default(name) for settings in found]
        if len(set(values)) > 1:
            rows.append([Cell(name), *map(Cell, values)])
    return Table(["Setting", *(run.name for run in runs)], rows)


def _list_settings(manifests: Manifests) -> dict[str, str]:
    """The settings of a run's jobs by name; of one that several have, the first job's."""
    settings: dict[str, str] = {}
    for step in (PREDICTIONS, ADAPTER, LABELS):
        if manifest := manifests.get(step.folder):
            settings |= dict(flatten(manifest.settings))
            settings |= {f"version of {k}": v for k, v in manifest.versions.items()}
            settings["version of distill"] = manifest.code_version
    return {name: value for name, value in settings.items() if not name.startswith(_OWN)}


def _describe_default(name: str) -> str:
    """What a run of an older version had, as it did not know the setting."""
    default = find_default(name)
    return _NOTHING if default is None else str(default)


def make_cost_table(runs: Sequence[ComparedRun]) -> Table:
    """Dollars and seconds of each run."""
    found = [dict(_list_costs(run)) for run in runs]
    names = list(dict.fromkeys(name for facts in found for name in facts))
    rows = [[Cell(name), *(Cell(facts.get(name, _NOTHING)) for facts in found)] for name in names]
    return Table(["Costs", *(run.name for run in runs)], rows)


def _list_costs(run: ComparedRun) -> Facts:
    labels, adapter = (run.manifests.get(step.folder) for step in (LABELS, ADAPTER))
    label = labels.summary if labels else {}
    train = adapter.summary if adapter else {}
    distilled = run.scores.by_system.get("distilled", {})
    savings, cascade = run.scores.data.get("savings"), run.scores.data.get("cascade")
    facts: Facts = []
    if label.get("run_cost_usd") is not None:
        facts.append(("Labels, dollars", format_usd(label["run_cost_usd"])))
    if "ok" in label:
        facts.append(("Labels", f"{label['ok']:,}"))
    for name, summary in (("Label job", label), ("Train job", train)):
        if "seconds" in summary:
            facts.append((name, format_seconds(summary["seconds"])))
    if distilled.get("rows_per_second"):
        facts.append(("Student's rows a second", f"{distilled['rows_per_second']:,.1f}"))
    if cascade:
        facts.append(("Answered by the student", _describe_share(cascade)))
    if savings and savings["saved_usd_per_million"] is not None:
        saved = savings["saved_usd_per_million"]
        facts.append(
            ("Saved for a million inputs", ("−" if saved < 0 else "") + format_usd(abs(saved)))
        )
    return facts


def _describe_share(cascade: Any) -> str:
    if cascade["chosen"] is None:
        return "none"
    return f"{cascade['chosen']['share']:.0%}" + ("" if cascade["holds"] else ", not confirmed")
