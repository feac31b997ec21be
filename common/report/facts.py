"""Facts of the jobs for the report: cost, speed, results, settings."""

from typing import Any

from common.evaluation.decision import Savings
from common.evaluation.scores import RowCounts
from common.labels.progress import format_seconds
from common.report.verdict import format_usd
from common.run.manifest import Manifest
from common.run.steps import CURVE, LABELS, CurveSummary, LabelSummary, TrainSummary
from common.training.curve import predict_gain

MORE = 1_000
"""Labels on top, whose worth is told."""

Facts = list[tuple[str, str]]
Manifests = dict[str, Manifest[Any]]
"""By step."""


def list_label_facts(manifest: Manifest[LabelSummary] | None) -> Facts:
    """Cost and efficiency of the labels; calls, tokens and times are the last job's."""
    if manifest is None or not manifest.summary:
        return []
    summary, teacher = manifest.summary, manifest.get_settings("teacher")
    always = {k: summary.get(k) for k in ("ok", "failed", "filtered")}
    sometimes = {k: summary.get(k) or None for k in ("duplicates", "reused")}
    counts = [f"{n:,} {k}" for k, n in (always | sometimes).items() if n is not None]
    facts = [("Teacher", str(teacher.get("model", ""))), ("Labels", ", ".join(counts))]
    if "inputs" in summary:
        facts.append(("Cost", _format_cost(summary)))
    last = " (last job)" if summary.get("reused") else ""
    if "calls" in summary:
        facts += [(name + last, text) for name, text in _list_call_facts(summary)]
    if "seconds" in summary:
        facts.append(("Whole job" + last, format_seconds(summary["seconds"])))
    return [(name, text) for name, text in facts if text]


def _list_call_facts(summary: LabelSummary) -> Facts:
    calls, seconds = summary["calls"], summary.get("call_seconds", 0)
    faults = f"{summary.get('retries', 0):,} retries, {summary.get('throttled', 0):,} throttled"
    facts = [
        ("Calls", f"{calls:,} ({faults})"),
        ("Tokens", _format_tokens(summary)),
        ("Requests", ", ".join(summary.get("adaptations", []))),
    ]
    if seconds:
        rate = f"{calls / seconds:,.0f}" if calls >= 10 * seconds else f"{calls / seconds:.1f}"
        facts.append(("Time of the calls", f"{format_seconds(seconds)}, {rate} calls a second"))
    if "efficiency" in summary and "optimum_seconds" in summary:
        best = f"the limits allow no less than {summary['optimum_seconds']:,.1f} s"
        facts.append(("Efficiency", f"{summary['efficiency']:.0%}: {best}"))
    return facts


def _format_tokens(summary: LabelSummary) -> str:
    reasoning = summary.get("reasoning_tokens")
    of_these = f" ({reasoning:,} of them reasoning)" if reasoning else ""
    told, given = (summary.get("prompt_tokens", 0), summary.get("completion_tokens", 0))
    return f"{told:,} in, {given:,} out{of_these}"


def _format_cost(summary: LabelSummary) -> str:
    """Dollars of the run, and per 1,000 examples."""
    cost = summary.get("run_cost_usd")
    if cost is None:
        return "the model's price is not known"
    inputs = summary["inputs"]
    each = f", ${1000 * cost / inputs:,.2f} for 1,000 examples" if cost and inputs else ""
    return f"${cost:,.2f}{each}"


def list_saving_facts(savings: Savings | None) -> Facts:
    """What 1,000 inputs cost, by the teacher and by the student, and what was spent."""
    if savings is None:
        return []
    teacher, student = savings["teacher_usd_per_1000"], savings["student_usd_per_1000"]
    price = "the model's price is not known" if teacher is None else f"{format_usd(teacher)}"
    facts = [
        ("1,000 inputs by the teacher", price),
        ("1,000 inputs by the student", f"{format_usd(student)} of machine time"),
        ("Labels and training", format_usd(savings["spent_usd"])),
    ]
    if (inputs := savings["break_even_inputs"]) is not None:
        facts.append(("Even after", f"{inputs:,} inputs"))
    return facts


def list_train_facts(manifest: Manifest[TrainSummary] | None) -> Facts:
    """The train job's results."""
    if manifest is None:
        return []
    summary, counts = manifest.summary, manifest.counts
    student = manifest.get_settings("student")
    gpu = summary.get("peak_gpu_bytes")
    facts = [
        ("Base student", str(student.get("model", ""))),
        ("Labels", ", ".join(f"{n:,} {k.replace('_', ' ')}" for k, n in counts.items())),
        ("Trained parameters", _format(summary.get("trainable_parameters"), ",")),
        ("Updates", _format(summary.get("updates"), ",")),
        ("Weights kept", _format(summary.get("best_update"), ",", "those of update ")),
        ("Their agreement with the teacher", _format(summary.get("agreement"), ".1%")),
        ("Device", str(summary.get("device", ""))),
        ("Most GPU memory", f"{gpu / 2**30:.1f} GiB" if gpu else ""),
        ("Whole job", format_seconds(summary["seconds"]) if "seconds" in summary else ""),
    ]
    return [(name, text) for name, text in facts if text]


def list_curve_facts(manifests: Manifests) -> Facts:
    """The learning curve, and what more labels would bring and cost."""
    curve, labels = manifests.get(CURVE.folder), manifests.get(LABELS.folder)
    if curve is None:
        return []
    summary: CurveSummary = curve.summary
    if not (points := summary["points"]):
        return []
    seen = ", ".join(f"{share:.1%} with {count:,}" for count, share in points)
    facts = [("Agreement by labels", seen)]
    if gain := predict_gain(points, summary["held_out"], MORE):
        low, value, high = (f"{100 * share:.1f}" for share in (gain.low, gain.value, gain.high))
        label: LabelSummary = labels.summary if labels else {}
        cost, inputs = label.get("run_cost_usd"), label.get("inputs")
        price = f", for ${MORE * cost / inputs:,.2f}" if cost and inputs else ""
        facts.append((f"{MORE:,} more labels", f"{value} points likely ({low} – {high}){price}"))
    return facts


def _format(value: float | None, form: str, before: str = "") -> str:
    return "" if value is None else f"{before}{value:{form}}"


def list_row_facts(rows: RowCounts) -> str:
    """The number of test rows, and of those left out by reason, in one line."""
    counts = {key: rows.get(key) for key in ("duplicates", "seen_in_train", "unusable")}
    dropped = [f"{count:,} {key.replace('_', ' ')}" for key, count in counts.items() if count]
    return f"{rows['test']:,} test rows" + (f" ({', '.join(dropped)} left out)" if dropped else "")


def flatten(content: dict[str, Any], before: str = "") -> Facts:
    """A manifest as facts such as `teacher.model` and its value, without its list of files."""
    facts: Facts = []
    for key, value in content.items():
        if isinstance(value, dict):
            facts += flatten(value, f"{before}{key}.")
        elif value is not None and before + key != "files":
            facts.append((before + key, str(value)))
    return facts
