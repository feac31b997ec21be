"""What the report says of the jobs: what they cost, how well they went, with which settings."""

from typing import Any

from common.labels.progress import format_seconds

Facts = list[tuple[str, str]]
Manifest = dict[str, Any]


def list_label_facts(manifest: Manifest) -> Facts:
    """What the labels cost, and how near the job came to the quickest that its limits allow.

    Calls, tokens and times are those of the job that ended them: a rerun takes what is there from
    the journal.
    """
    summary = manifest.get("summary", {})
    if not summary:
        return []
    teacher = manifest.get("settings", {}).get("teacher", {})
    counts = [f"{summary[k]:,} {k}" for k in ("ok", "failed", "filtered") if k in summary]
    counts += [f"{summary[k]:,} {k}" for k in ("duplicates", "reused") if summary.get(k)]
    facts = [("Teacher", str(teacher.get("model", ""))), ("Labels", ", ".join(counts))]
    if "inputs" in summary:
        facts.append(("Cost", _format_cost(summary)))
    last = " (last job)" if summary.get("reused") else ""
    if "calls" in summary:
        facts += [(name + last, text) for name, text in _list_call_facts(summary)]
    if "seconds" in summary:
        facts.append(("Whole job" + last, format_seconds(summary["seconds"])))
    return [(name, text) for name, text in facts if text]


def _list_call_facts(summary: dict[str, Any]) -> Facts:
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


def _format_cost(summary: dict[str, Any]) -> str:
    """Dollars of the whole run, and for 1,000 of its examples."""
    cost = summary.get("run_cost_usd")
    if cost is None:
        return "the model's price is not known"
    each = f", ${1000 * cost / summary['inputs']:,.2f} for 1,000 examples" if cost else ""
    return f"${cost:,.2f}{each}"


def list_train_facts(manifest: Manifest) -> Facts:
    """What the train job made of the labels."""
    summary, counts = manifest.get("summary", {}), manifest.get("counts", {})
    student = manifest.get("settings", {}).get("student", {})
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


def list_row_facts(rows: dict[str, int]) -> str:
    """How many test rows there are, and how many were left out and why, in one line."""
    left_out = {
        "duplicates": "duplicates",
        "seen_in_train": "seen in train",
        "unusable": "unusable",
    }
    dropped = [f"{rows[key]:,} {name}" for key, name in left_out.items() if rows.get(key)]
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
