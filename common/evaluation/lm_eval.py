"""Result files in the names and format of lm-evaluation-harness.

results_<time>.json has a task <task>_<system> for each system; samples_<task>_<time>.jsonl has a
line per row.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from common.data.testset import TestRow
from common.evaluation.scores import Figure, Metrics
from common.evaluation.systems import SYSTEMS
from common.metrics.metrics import METRICS
from common.run.manifest import code_version
from common.run.storage import RunStorage
from common.tasks.task import Task

_Z = 1.959964


def write_results(
    storage: RunStorage,
    task: Task,
    metrics: Metrics,
    rows: Sequence[TestRow],
    predictions: dict[str, list[str]],
    settings: dict[str, Any],
) -> list[str]:
    """Writes the files to the run's folder; returns their names."""
    names, moment = list(metrics["metrics"]), time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    tasks = {system: f"{task.name}_{system}" for system in metrics["systems"]}
    shots = {s: len(task.few_shot) for s in SYSTEMS if SYSTEMS[s].has_few_shot}
    counts = {"original": len(rows), "effective": len(rows)}
    results = {
        "results": {
            name: {"alias": name, **_format_figures(metrics["systems"][system], names)}
            for system, name in tasks.items()
        },
        "n-shot": {name: shots.get(system, 0) for system, name in tasks.items()},
        "configs": {name: {"task": name, "metric_list": names} for name in tasks.values()},
        "n-samples": dict.fromkeys(tasks.values(), counts),
        "higher_is_better": {
            name: {metric: not METRICS[metric].is_better_low for metric in names}
            for name in tasks.values()
        },
        "versions": dict.fromkeys(tasks.values(), code_version()),
        "config": settings,
        "date": time.time(),
    }
    files = [f"results_{moment}.json"]
    storage.write_json(files[0], results)
    for system, name in tasks.items():
        samples = _make_samples(names, rows, predictions[system])
        lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        files.append(f"samples_{name}_{moment}.jsonl")
        content = b"".join(line.encode("utf-8", "surrogatepass") for line in lines)
        storage.write_bytes(files[-1], content)
    return files


def _format_figures(figures: dict[str, Figure], names: Sequence[str]) -> dict[str, float]:
    formatted: dict[str, float] = {}
    for name in names:
        figure = figures[name]
        value, n = figure["value"] or 0.0, figure["n"]
        low, high = figure.get("interval") or [value, value]
        error = (high - low) / (2 * _Z)
        if METRICS[name].is_share:
            error = math.sqrt(value * (1 - value) / max(n - 1, 1))
        formatted |= {f"{name},none": value, f"{name}_stderr,none": error}
    return formatted


def _make_samples(
    names: Sequence[str], rows: Sequence[TestRow], texts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    shares = [name for name in names if METRICS[name].is_share]
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        scores = {
            name: float(METRICS[name].measure([row.text], [text], [row.references])[0, 0])
            for name in shares
        }
        yield {
            "doc_id": i,
            "doc": {"id": row.id, "text": row.text, "references": row.references, **row.groups},
            "target": row.references[0],
            "resps": [[text]],
            "filtered_resps": [text],
            "filter": "none",
            "metrics": shares,
            "doc_hash": row.id,
            **scores,
        }
