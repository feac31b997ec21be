"""May the student replace the teacher: the answer in words, from the figures of metrics.json."""

from dataclasses import dataclass
from typing import Literal

from common.evaluation.cascade import CascadeFacts, CascadePoint
from common.evaluation.decision import Savings
from common.evaluation.scores import Comparison
from common.report.tables import Scores, count_rows

_BASELINES = {
    "copy": "copying the input",
    "base": "the base student",
    "base_few_shot": "the base student with few-shot examples",
}
"""What the student should beat: they need neither teacher nor training."""
_FEWEST_ROWS = 80
"""Test rows that a calibration needs."""

Standing = Literal["better", "level", "worse"]
_NOT_BETTER = ("level", "worse")


@dataclass(frozen=True)
class Statement:
    """A sentence or two of one matter; `is_warning` if they speak against the student."""

    title: str
    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Verdict:
    """The answer, and the statements behind it."""

    lead: str
    statements: list[Statement]


def decide(scores: Scores) -> Verdict:
    """Whether the student may replace the teacher; parts that are not measured say so."""
    statements = [_state_score(scores), _state_share(scores), _state_savings(scores)]
    return Verdict(_answer(scores), [*statements, *_state_baselines(scores)])


def stand(scores: Scores, other: str) -> Standing | None:
    """How the distilled student stands against a system, by the interval of their difference.

    Without an interval, by the values alone; None if one of them is not measured.
    """
    sign = -1 if scores.is_better_low(scores.main) else 1
    found = _find_comparison(scores, other)
    if found and found.get("interval"):
        low, high = sorted(sign * bound for bound in found["interval"])
        return "better" if low > 0 else "worse" if high < 0 else "level"
    values = scores.get("distilled")["value"], scores.get(other)["value"]
    if values[0] is None or values[1] is None:
        return None
    difference = sign * (values[0] - values[1])
    return "better" if difference > 0 else "worse" if difference < 0 else "level"


def find_strongest(scores: Scores) -> str:
    """The best of the systems that need neither teacher nor training."""
    sign = -1 if scores.is_better_low(scores.main) else 1
    values = {name: scores.get(name)["value"] for name in _BASELINES}
    measured = {name: sign * value for name, value in values.items() if value is not None}
    return max(measured, key=lambda name: measured[name], default="base")


def _find_comparison(scores: Scores, other: str) -> Comparison | None:
    for c in scores.data.get("comparisons") or []:
        if (c["system"], c["than"], c["metric"]) == ("distilled", other, scores.main):
            return c
    return None


def _answer(scores: Scores) -> str:
    standing = stand(scores, "copy")
    if standing in ("level", "worse"):
        how = "no better" if standing == "level" else "worse"
        return f"The student may not replace the teacher: it is {how} than copying the input."
    beaten_by = [name for key, name in _BASELINES.items() if stand(scores, key) in _NOT_BETTER]
    but = f" But it is no better than {_join(beaten_by)}." if beaten_by else ""
    cascade = scores.data.get("cascade")
    if stand(scores, "teacher") == "better":
        return f"The student may replace the teacher: it is better.{but}"
    return (_answer_by_cascade(scores, cascade) if cascade else _answer_by_scores(scores)) + but


def _answer_by_cascade(scores: Scores, cascade: CascadeFacts) -> str:
    chosen, margin = cascade["chosen"], _format_amount(scores, cascade["margin"])
    if chosen is None:
        return (
            "The student may not replace the teacher: for no share of the inputs is the score "
            f"shown to stay within {margin} of the teacher's."
        )
    if not cascade["holds"]:
        return (
            "That the student may replace the teacher is not shown: what half of the test rows "
            "promise, the other half does not confirm."
        )
    if chosen["share"] == 1:
        return (
            f"The student may replace the teacher: its score is within {margin} of the teacher's."
        )
    return (
        f"The student may replace the teacher for {chosen['share']:.0%} of the inputs, those that "
        "it is surest of."
    )


def _answer_by_scores(scores: Scores) -> str:
    standing = stand(scores, "teacher")
    if standing is None:
        return "Whether the student may replace the teacher is not measured."
    if standing == "level":
        return (
            "Whether the student may replace the teacher is open: these rows cannot tell their "
            "scores apart."
        )
    return (
        "The student scores less than the teacher. Whether it may replace it for a share of the "
        "inputs is not measured."
    )


def _state_score(scores: Scores) -> Statement:
    distilled, teacher = scores.get("distilled"), scores.get("teacher")
    text = f"The distilled student scores {scores.format(distilled['value'])}"
    if teacher["value"] is not None:
        text += f", the teacher {scores.format(teacher['value'])}"
    kept = scores.data.get("retention")
    if kept is not None:
        text += f": it keeps {kept:.0%} of the teacher's score"
    if found := _find_comparison(scores, "teacher"):
        text += f". The difference is {_format_change(scores, found)}"
    return Statement("Score", text + ".")


def _state_share(scores: Scores) -> Statement:
    """The share of the inputs that the student answers, on the rows that had no say in it."""
    title, cascade = "Share", scores.data.get("cascade")
    if cascade is None:
        return Statement(title, f"Not measured: {_explain_gap(scores)}.")
    chosen, margin = cascade["chosen"], _format_amount(scores, cascade["margin"])
    if chosen is None:
        return Statement(
            title,
            "None. Even with only its surest answers, the score is not shown to stay within "
            f"{margin} of the teacher's, the margin that is set.",
            is_warning=True,
        )
    result = _format_point(scores, chosen)
    rows = count_rows(cascade["rows"])
    if cascade["holds"]:
        return Statement(
            title,
            f"On the {rows} that had no say in the choice, the student answers "
            f"{_name_share(chosen['share'])}. The score is {result}, and the margin is {margin}.",
        )
    more = " More test rows may settle it." if _is_close(scores, chosen, cascade) else ""
    return Statement(
        title,
        f"Half of the test rows chose the student for {_name_share(chosen['share'])}. On the other "
        f"half, {rows}, the score is {result}: that may be beyond the margin of {margin}.{more}",
        is_warning=True,
    )


def _is_close(scores: Scores, point: CascadePoint, cascade: CascadeFacts) -> bool:
    """Whether only the interval is beyond the margin, not the difference itself."""
    sign = -1 if scores.is_better_low(scores.main) else 1
    return sign * point["difference"] >= -cascade["margin"]


def _name_share(share: float) -> str:
    return (
        "all"
        if share == 1
        else f"{share:.0%}, those that it is surest of, and the teacher the rest"
    )


def _explain_gap(scores: Scores) -> str:
    """Why there is no cascade."""
    rows = scores.data["rows"]["test"]
    if rows < _FEWEST_ROWS:
        return f"{count_rows(rows)} are too few to tell how sure the student is; 400 are a start"
    return (
        "it takes the student's confidence in each answer, which older versions do not record, "
        "and both right and wrong answers"
    )


def _format_point(scores: Scores, point: CascadePoint) -> str:
    """`86.1%, 0.6 points more than the teacher's (+0.2 to +1.5)`."""
    bounds = scores.format_bounds(point["difference_interval"], scores.main)
    amount = _format_amount(scores, point["difference"])
    how = "more" if point["difference"] > 0 else "less"
    return f"{scores.format(point['value'])}, {amount} {how} than the teacher's ({bounds})"


def _state_savings(scores: Scores) -> Statement:
    """What the cascade saves, and after how many inputs its cost is saved."""
    title = "Savings"
    savings, cascade = scores.data.get("savings"), scores.data.get("cascade")
    if savings is None or cascade is None:
        return Statement(title, "Not measured, as the share is not.")
    if savings.get("saved_usd_per_million") is None:
        return Statement(title, "Not known: the teacher's price is not known.")
    if cascade["chosen"] is None:
        return Statement(title, "None: the teacher answers all inputs.", is_warning=True)
    return _state_amount(title, savings, would=not cascade["holds"])


def _state_amount(title: str, savings: Savings, would: bool) -> Statement:
    saved = savings["saved_usd_per_million"] or 0.0
    teacher = 1000 * (savings["teacher_usd_per_1000"] or 0.0)
    free = "" if savings["student_usd_per_1000"] else " Here the student's machine costs nothing."
    if saved <= 0:
        text = (
            "None: the student's machine costs as much as it saves, or more "
            f"({format_usd(-saved)} more for a million inputs)."
        )
        return Statement(title, text + free, is_warning=True)
    verb = "would be saved" if would else "are saved"
    text = f"{format_usd(saved)} of {format_usd(teacher)} {verb} for a million inputs."
    inputs, spent = savings["break_even_inputs"], savings["spent_usd"]
    if inputs is not None and spent:
        text += f" Labels and training cost {format_usd(spent)}, saved after {inputs:,} inputs."
    return Statement(title, text + free)


def _state_baselines(scores: Scores) -> list[Statement]:
    """Whether the student beats what needs neither teacher nor training."""
    standings = {key: stand(scores, key) for key in _BASELINES}
    won = [
        f"{_BASELINES[key]} by {_format_gap(scores, key)}"
        for key, standing in standings.items()
        if standing == "better"
    ]
    statements = [Statement("Better than", f"It beats {_join(won)}.")] if won else []
    for key, standing in standings.items():
        if standing not in _NOT_BETTER:
            continue
        found = _find_comparison(scores, key)
        change = (
            f" is {_format_change(scores, found)}" if found else f" is {_format_gap(scores, key)}"
        )
        chance = ", which may be chance" if standing == "level" and found else ""
        title = "No better than" if standing == "level" else "Worse than"
        name = _BASELINES[key]
        text = f"{name[0].upper()}{name[1:]}: the difference{change}{chance}."
        statements.append(Statement(title, text, is_warning=True))
    return statements


def _format_gap(scores: Scores, other: str) -> str:
    """The difference to a system without a sign: `73.3 points`."""
    found = _find_comparison(scores, other)
    if found and "difference" in found:
        return _format_amount(scores, found["difference"])
    values = scores.get("distilled")["value"] or 0.0, scores.get(other)["value"] or 0.0
    return _format_amount(scores, values[0] - values[1])


def _format_change(scores: Scores, found: Comparison) -> str:
    """A difference with its interval: `+7.2 points (+5.1 to +9.3)`."""
    bounds = scores.format_bounds(found.get("interval"), scores.main)
    change = scores.format_difference(found.get("difference"), scores.main)
    return f"{change} ({bounds})" if bounds else change


def _format_amount(scores: Scores, value: float) -> str:
    return scores.format_difference(abs(value), scores.main).removeprefix("+")


def format_usd(amount: float) -> str:
    """Dollars with three significant digits at least: `$312`, `$1.30`, `$0.00124`."""
    if amount == 0 or amount >= 100:
        return f"${amount:,.0f}"
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.3g}"


def _join(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
