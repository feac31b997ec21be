"""What stands behind the verdict, drawn: the cascade, its dollars, and the calibration."""

from collections.abc import Sequence

from common.evaluation.cascade import CascadeFacts, CascadePoint
from common.evaluation.confidence import ConfidenceFacts
from common.evaluation.decision import Savings
from common.metrics.statistics import wilson_interval
from common.report.plot import Plot, find_ticks, make_axis, make_figure
from common.report.tables import Cell, Scores, Table, count_rows
from common.report.verdict import format_usd

_SHARES = [0, 0.25, 0.5, 0.75, 1]


def draw_cascade(scores: Scores) -> str:
    """The score by the share that the student answers, and the dollars; empty if not measured."""
    cascade, savings = scores.data.get("cascade"), scores.data.get("savings")
    if cascade is None or len(cascade["points"]) < 2:
        return ""
    return _draw_quality(scores, cascade) + (_draw_dollars(cascade, savings) if savings else "")


def _draw_quality(scores: Scores, cascade: CascadeFacts) -> str:
    points, chosen = _sort(cascade["points"]), cascade["chosen"]
    lows = [(p["share"], p["interval"][0]) for p in points]
    highs = [(p["share"], p["interval"][1]) for p in points]
    teacher = points[0]["value"]
    sign = -1 if scores.is_better_low(scores.main) else 1
    least = teacher - sign * cascade["margin"]
    drawn = [teacher, least, *(bound for _, bound in [*lows, *highs])]
    title = scores.title(scores.main)
    form = ".0%" if scores.is_share(scores.main) else ".4g"
    share = make_axis("answered by the student", _SHARES, ".0%")
    plot = Plot(share, make_axis("", find_ticks(min(drawn), max(drawn)), form), height=280)
    plot.add_band(lows, highs, "distilled")
    plot.add_level(teacher, "teacher", f"teacher alone {scores.format(teacher)}")
    how = "less" if sign > 0 else "more"
    margin = scores.format_difference(cascade["margin"], scores.main).removeprefix("+")
    plot.add_level(least, "margin", f"margin: {margin} {how}", is_below=sign > 0)
    plot.add_line([(p["share"], p["value"]) for p in points], "distilled")
    told = f"{title} by the share that the student answers, from {scores.format(teacher)} of the "
    told += f"teacher alone to {scores.format(points[-1]['value'])} of the student alone."
    if chosen:
        style = "distilled" if cascade["holds"] else "hollow distilled"
        plot.add_mark(chosen["share"], f"chosen: {chosen['share']:.0%}")
        plot.add_dot(chosen["share"], chosen["value"], style, radius=5)
        told += f" Chosen: {chosen['share']:.0%}, {scores.format(chosen['value'])}."
    return make_figure(f"{title}, with its 95 % interval", plot.render(told))


def list_costs(cascade: CascadeFacts, savings: Savings) -> list[tuple[float, float]]:
    """Shares that the student answers, and the dollars for 1,000 inputs; empty without a price.

    The student answers all inputs first, the teacher those of which it is not sure.
    """
    teacher = savings.get("teacher_usd_per_1000")
    if teacher is None:
        return []
    points = _sort(cascade["points"])
    return [
        (p["share"], savings["student_usd_per_1000"] + (1 - p["share"]) * teacher) for p in points
    ]


def _draw_dollars(cascade: CascadeFacts, savings: Savings) -> str:
    costs = list_costs(cascade, savings)
    if not costs:
        return ""
    teacher = savings["teacher_usd_per_1000"] or 0.0
    ticks = find_ticks(0, 1.1 * max(teacher, *(cost for _, cost in costs)))
    digits = max(0, -int(f"{ticks[1]:e}".split("e")[1]) + (f"{ticks[1]:.1e}"[2] != "0"))
    share = make_axis("answered by the student", _SHARES, ".0%")
    plot = Plot(share, make_axis("", ticks, f",.{digits}f"), height=280)
    plot.add_level(teacher, "teacher", f"teacher alone {format_usd(teacher)}")
    plot.add_line(costs, "distilled")
    title = "Dollars for 1,000 inputs"
    told = f"{title}: {format_usd(costs[0][1])} to {format_usd(costs[-1][1])}."
    if chosen := cascade["chosen"]:
        cost = savings["student_usd_per_1000"] + (1 - chosen["share"]) * teacher
        style = "distilled" if cascade["holds"] else "hollow distilled"
        plot.add_mark(chosen["share"], f"chosen: {chosen['share']:.0%}")
        plot.add_dot(chosen["share"], cost, style, radius=5)
        plot.add_text(chosen["share"], cost, format_usd(cost))
        told += f" Chosen: {format_usd(cost)}."
    return make_figure(title, plot.render(told))


def _sort(points: Sequence[CascadePoint]) -> list[CascadePoint]:
    return sorted(points, key=lambda point: point["share"])


def make_cascade_table(scores: Scores) -> Table | None:
    """The cascade's points, with the dollars where the price is known."""
    cascade, savings = scores.data.get("cascade"), scores.data.get("savings")
    if cascade is None:
        return None
    costs = list_costs(cascade, savings) if savings else []
    head = ["Answered by the student", scores.title(scores.main), "Beside the teacher's"]
    rows = []
    for number, point in enumerate(_sort(cascade["points"])):
        change = scores.format_difference(point["difference"], scores.main)
        bounds = scores.format_bounds(point["difference_interval"], scores.main)
        interval = scores.format_interval(point["interval"])
        row = [Cell(f"{point['share']:.0%}"), Cell(scores.format(point["value"]), interval)]
        row += [Cell(change, bounds), Cell(f"{min(point['threshold'], 1.0):.0%}")]
        row += [Cell(format_usd(costs[number][1]))] if costs else []
        rows.append(row)
    return Table([*head, "Confidence from", *["Dollars for 1,000"] * bool(costs)], rows)


def draw_calibration(scores: Scores) -> str:
    """The share of right answers by their confidence; empty if not measured."""
    facts = scores.data.get("confidence")
    if not facts or not facts.get("bins"):
        return ""
    ticks = [0, 0.25, 0.5, 0.75, 1]
    plot = Plot(make_axis("confidence", ticks, ".0%"), make_axis("", ticks, ".0%"), height=320)
    plot.add_line([(0, 0), (1, 1)], "diagonal")
    plot.add_text(0.55, 0.38, "line: as sure as right", "aside")
    for sure, right, rows in facts["bins"]:
        plot.add_whisker(sure, *wilson_interval(right, rows), "distilled")
        plot.add_dot(sure, right, "distilled")
    seen = ", ".join(f"{right:.0%} at {sure:.0%}" for sure, right, _ in facts["bins"])
    return make_figure("Share of right answers", plot.render(f"Share of right answers: {seen}"))


def describe_calibration(facts: ConfidenceFacts) -> str:
    """How good the confidence is, in words."""
    text = (
        f"Over ten bins of the {count_rows(facts['rows'])} that it has not seen, the confidence is "
        f"{100 * facts['error']:.1f} points off (expected calibration error)."
    )
    if (auroc := facts.get("auroc")) is not None:
        text += (
            f" Of a right and a wrong answer, the right one is the surer in {auroc:.0%} of cases "
            f"(AUROC {auroc:.2f}; 0.5 is chance)."
        )
    return text


def make_calibration_table(facts: ConfidenceFacts) -> Table:
    """The bins of the calibration."""
    rows = [
        [Cell(f"{sure:.1%}"), Cell(f"{right:.1%}", _format_wilson(right, n)), Cell(f"{n:,}")]
        for sure, right, n in facts["bins"]
    ]
    return Table(["Confidence", "Right", "Rows"], rows)


def _format_wilson(share: float, rows: int) -> str:
    low, high = wilson_interval(share, rows)
    return f"{100 * low:.1f}–{high:.1%}"
