"""The table of a sweep: several students that learn from the same labels."""

from collections.abc import Mapping

from common.evaluation.scores import Metrics
from common.report.tables import Cell, Scores, Table

_SYSTEMS = ("base", "base_few_shot", "distilled")


def make_sweep_table(found: Mapping[str, Metrics]) -> Table:
    """The main metric of each student, by name: base, few-shot, distilled, and the teacher's."""
    first = Scores(next(iter(found.values())))
    title = first.title(first.main)
    head = [f"Student, {title}", "Base", "Few-shot", "Distilled", "Kept of the teacher's"]
    rows = []
    for name, metrics in found.items():
        scores = Scores(metrics)
        rows.append(
            [Cell(name), *(_make_cell(scores, system) for system in _SYSTEMS), scores.retention()]
        )
    teacher = _make_cell(first, "teacher")
    return Table(head, [*rows, [Cell("the teacher itself"), Cell(""), Cell(""), teacher, Cell("")]])


def _make_cell(scores: Scores, system: str) -> Cell:
    figures = scores.get(system)
    return Cell(scores.format(figures["value"]), scores.format_interval(figures.get("interval")))
