"""Tables and sentences of the scores, for HTML and Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from common.evaluation.scores import FEW_ROWS, Figure, Metrics
from common.evaluation.systems import name_system, order_systems

DETECTABLE = "Detectable from: with these rows, a smaller difference could not be told from chance."
_NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """A table's cell; `note` is small text such as an interval."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading."""

    head: list[str]
    rows: list[list[Cell]]


def transpose(table: Table, corner: str) -> Table:
    """A table whose rows are the columns of another, for one that is too wide."""
    names = table.head[1:]
    head = [corner, *(first.text for first, *_ in table.rows)]
    columns = zip(*(rest for _, *rest in table.rows), strict=True)
    return Table(head, [[Cell(n), *cells] for n, cells in zip(names, columns, strict=True)])


def format_p(p: float) -> str:
    """A p-value with two significant digits at most."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def count_rows(n: int) -> str:
    """A number of rows, in words."""
    return f"{n:,} row" + "s" * (n != 1)


def is_small(figures: Figure) -> bool:
    """Whether figures have few rows."""
    return bool(figures.get("is_small", figures.get("n", 0) < FEW_ROWS))


class Scores:
    """The content of metrics.json, formatted for readers; missing parts are left out."""

    def __init__(self, metrics: Metrics) -> None:
        self.data = metrics
        self.main = str(metrics["main_metric"])
        self.by_system: dict[str, dict[str, Any]] = metrics["systems"]
        self.systems = order_systems(self.by_system)
        described = metrics.get("metrics") or self._find_metrics()
        self.metrics = [self.main, *(name for name in described if name != self.main)]

    def _find_metrics(self) -> Iterator[str]:
        scores = next(iter(self.by_system.values()))
        return (k for k, v in scores.items() if isinstance(v, dict) and "value" in v)

    def title(self, metric: str) -> str:
        """The title of a metric."""
        described = self.data.get("metrics", {}).get(metric, {})
        return str(described.get("title") or metric.replace("_", " ").capitalize())

    def is_share(self, metric: str) -> bool:
        """Whether a metric is a share from 0 to 1, shown in per cent."""
        return bool(self.data.get("metrics", {}).get(metric, {}).get("is_share", True))

    def is_better_low(self, metric: str) -> bool:
        """Whether a lower value of a metric is better."""
        return bool(self.data.get("metrics", {}).get(metric, {}).get("is_better_low"))

    def format(self, value: float | None, metric: str | None = None) -> str:
        """A value of a metric, by default the main one."""
        if value is None:
            return _NOTHING
        return f"{value:.1%}" if self.is_share(metric or self.main) else f"{value:.3f}"

    def format_interval(self, interval: list[float] | None, metric: str | None = None) -> str:
        """An interval of a metric's values."""
        if not interval:
            return ""
        low, high = (self.format(bound, metric) for bound in interval)
        return f"{low.removesuffix('%')}–{high}"

    def format_difference(self, value: float | None, metric: str) -> str:
        """A difference of two values, in points for shares."""
        if value is None:
            return _NOTHING
        text = f"{100 * value:+.1f} points" if self.is_share(metric) else f"{value:+.3f}"
        return text.replace("-", "−")

    def format_bounds(self, interval: Sequence[float] | None, metric: str) -> str:
        """The interval of a difference: `+5.1 to +9.3`; empty if there is none."""
        bounds = [self.format_difference(bound, metric) for bound in interval or []]
        return " to ".join(bound.removesuffix(" points") for bound in bounds)

    def get(self, system: str, metric: str | None = None) -> Figure:
        """A system's figures of a metric, by default the main one."""
        found: Figure | None = self.by_system.get(system, {}).get(metric or self.main)
        return found or {"value": None}

    def list_groups(self) -> list[str]:
        """The groups with more than one value."""
        groups: dict[str, Any] = self.by_system[self.systems[0]].get("groups", {})
        return [name for name, values in groups.items() if len(values) > 1]

    def list_slices(self, group: str) -> dict[str, dict[str, Figure]]:
        """The main metric's figures by value of a group and by system."""
        slices: dict[str, dict[str, Figure]] = {}
        for system in self.systems:
            for value, scores in self.by_system[system].get("groups", {}).get(group, {}).items():
                if self.main in scores:
                    slices.setdefault(str(value), {})[system] = scores[self.main]
        return slices

    def list_unanswered(self) -> str:
        """The rows without an answer, by system and reason, in one sentence, if any."""
        parts = [
            f"{name_system(system)}: "
            + ", ".join(f"{count:,} {reason}" for reason, count in figures["unanswered"].items())
            for system, figures in self.by_system.items()
            if figures.get("unanswered")
        ]
        return f"Rows without an answer count as wrong: {'; '.join(parts)}." if parts else ""

    def retention(self) -> Cell:
        """The share of the teacher's score that the distilled student reaches."""
        kept, interval = self.data.get("retention"), self.data.get("retention_interval")
        note = f"{100 * interval[0]:.1f}–{interval[1]:.1%}" if interval else ""
        return Cell(_NOTHING if kept is None else f"{kept:.1%}", note)


def make_main_table(scores: Scores) -> Table:
    """The main metric of all systems."""
    rows = [
        [Cell(name_system(system)), make_cell(scores, scores.get(system))]
        for system in scores.systems
    ]
    return Table(["System", scores.title(scores.main)], rows)


def make_metrics_table(scores: Scores) -> Table:
    """All metrics of all systems, with speed, precision and cost where known."""
    agreement: dict[str, Figure] = scores.data.get("agreement") or {}
    speeds = [
        ("tokens_per_second", "Tokens a second", "{:,.0f}"),
        ("rows_per_second", "Rows a second", "{:,.1f}"),
        ("precision", "Weights", "{}"),
        ("cost_usd_per_1000", "Dollars for 1,000 rows", "{:,.2f}"),
    ]
    speeds = [s for s in speeds if any(s[0] in of for of in scores.by_system.values())]
    rows = []
    for system in scores.systems:
        row = [Cell(name_system(system))]
        row += [make_cell(scores, scores.get(system, name), name) for name in scores.metrics]
        if agreement:
            row.append(make_cell(scores, agreement.get(system, {}), "agreement"))
        for key, _, form in speeds:
            value = scores.by_system[system].get(key)
            row.append(Cell("" if value is None else form.format(value)))
        rows.append(row)
    head = ["System", *map(scores.title, scores.metrics)]
    head += ["Agreement with the teacher"] if agreement else []
    return Table(head + [title for _, title, _ in speeds], rows)


def make_cell(scores: Scores, figures: Figure, metric: str | None = None) -> Cell:
    """A value and its interval; empty if not measured."""
    if "value" not in figures:
        return Cell("")
    interval = scores.format_interval(figures.get("interval"), metric)
    return Cell(scores.format(figures["value"], metric), interval)


def make_comparisons(scores: Scores, of_main: bool) -> Table:
    """The differences between systems in the main metric, or in all others."""
    rows = []
    for c in scores.data.get("comparisons") or []:
        metric = c["metric"]
        if (metric == scores.main) != of_main:
            continue
        title = f"{name_system(c['system'])} – {name_system(c['than']).lower()}"
        interval = scores.format_bounds(c.get("interval"), metric)
        p = c.get("p_value")
        rows.append(
            [
                Cell(title, scores.title(metric)),
                Cell(scores.format_difference(c.get("difference"), metric), interval),
                Cell(_NOTHING if p is None else format_p(p)),
                Cell(scores.format_difference(c.get("smallest"), metric).removeprefix("+")),
            ]
        )
    return Table(["Comparison", "Difference", "p value", "Detectable from"], rows)


def make_group_table(scores: Scores, group: str) -> Table:
    """The main metric by value of a group."""
    rows = []
    for value, by_system in scores.list_slices(group).items():
        any_figures = next(iter(by_system.values()))
        row = [Cell(value, count_rows(any_figures["n"]) + ", few" * is_small(any_figures))]
        row += [make_cell(scores, by_system.get(system, {})) for system in scores.systems]
        rows.append(row)
    return Table([group, *map(name_system, scores.systems)], rows)
