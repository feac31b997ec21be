"""What the report says of the jobs: what they cost, how well they went, with which settings."""

from typing import Any

from common.evaluation.scores import RowCounts
from common.labels.progress import format_seconds
from common.run.manifest import Manifest
from common.run.steps import LabelSummary, TrainSummary

Facts = list[tuple[str, str]]
Manifests = dict[str, Manifest[Any]]
"""By step, those that are there."""


def list_label_facts(manifest: Manifest[LabelSummary] | None) -> Facts:
    """What the labels cost, and how near the job came to the quickest that its limits allow.

    Calls, tokens and times are those of the job that ended them: a rerun takes what is there from
    the journal.
    """
    if manifest is None or not manifest.summary:
        return []
    summary, teacher = manifest.summary, manifest.settings.get("teacher", {})
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
    """What the calls took."""
    calls, seconds = summary["calls"], summary.get("call_seconds", 0)
    faults = f"{summary.get('retries', 0):,} retries, {summary.get('throttled', 0):,} throttled"
    facts = [
        ("Calls", f"{calls:,} ({faults})"),
        ("Tokens", f"{summary['prompt_tokens']:,} in, {summary['completion_tokens']:,} out"),
    ]
    if seconds:
        rate = f"{calls / seconds:,.0f}" if calls >= 10 * seconds else f"{calls / seconds:.1f}"
        facts.append(("Time of the calls", f"{format_seconds(seconds)}, {rate} calls a second"))
    if "efficiency" in summary:
        best = f"the limits allow no less than {summary['optimum_seconds']:,.1f} s"
        facts.append(("Efficiency", f"{summary['efficiency']:.0%}: {best}"))
    return facts


def _format_cost(summary: LabelSummary) -> str:
    """Dollars of the whole run, and for 1,000 of its examples."""
    cost = summary.get("run_cost_usd")
    if cost is None:
        return "the model's price is not known"
    each = f", ${1000 * cost / summary['inputs']:,.2f} for 1,000 examples" if cost else ""
    return f"${cost:,.2f}{each}"


def list_train_facts(manifest: Manifest[TrainSummary] | None) -> Facts:
    """What the train job made of the labels."""
    if manifest is None:
        return []
    summary, counts = manifest.summary, manifest.counts
    student = manifest.settings.get("student", {})
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


def _format(value: float | None, form: str, before: str = "") -> str:
    return "" if value is None else f"{before}{value:{form}}"


def list_row_facts(rows: RowCounts) -> str:
    """How many test rows there are, and how many were left out and why, in one line."""
    left_out = {
        "duplicates": "duplicates",
        "seen_in_train": "seen in train",
        "unusable": "unusable",
    }
    counts = {name: rows.get(key) for key, name in left_out.items()}
    dropped = [f"{count:,} {name}" for name, count in counts.items() if count]
    return f"{rows['test']:,} test rows" + (f" ({', '.join(dropped)} left out)" if dropped else "")


def flatten(content: dict[str, Any], before: str = "") -> Facts:
    """A manifest as one fact a line, `teacher.model` and its value; without its list of files."""
    facts: Facts = []
    for key, value in content.items():
        if isinstance(value, dict):
            facts += flatten(value, f"{before}{key}.")
        elif value is not None and before + key != "files":
            facts.append((before + key, str(value)))
    return facts
