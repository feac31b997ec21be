"""A report of a few made-up rows, for the tests of its text and of its page in a browser."""

from dataclasses import replace

from common.report.page import render_report
from common.run.manifest import Manifest

SYSTEMS = ("copy", "base", "distilled", "teacher")
MANIFESTS = {
    "labels": Manifest(
        "labels",
        {},
        {
            "inputs": 4003,
            "ok": 4000,
            "failed": 1,
            "filtered": 2,
            "reused": 0,
            "calls": 4003,
            "retries": 7,
            "throttled": 3,
            "prompt_tokens": 1_000_000,
            "completion_tokens": 50_000,
            "cost_usd": 0.5,
            "run_cost_usd": 2.0,
            "call_seconds": 100.0,
            "optimum_seconds": 90.0,
            "efficiency": 0.9,
            "seconds": 110.0,
        },
        settings={"teacher": {"model": "big-model"}},
        code_version="0.1.0",
    ),
    "adapter": Manifest(
        "adapter",
        {},
        {"best_update": 20, "updates": 30, "device": "CPU", "seconds": 61.0},
        counts={"labels": 4000},
    ),
    "predictions": Manifest("predictions", {}, {}, finished_at="2026-11-23T18:47:16Z"),
}
HISTORY = [{"step": 10 * i, "loss": 2.0 / i, "learning_rate": 1e-3} for i in (1, 2, 3)]


def score(flags):
    value = sum(flags) / len(flags)
    return {"value": value, "n": len(flags), "interval": [0.9 * value, 0.5 + value / 2]}


def make_tables(answers, texts, references, langs):
    """Prediction rows by system; `answers` has each system's texts."""
    return {
        system: [
            {
                "id": f"{i:032x}",
                "text": texts[i],
                "references": references[i],
                "prediction": prediction,
                "error": None,
                "tokens": 3,
                "seconds": 0.1,
                "lang": langs[i],
            }
            for i, prediction in enumerate(predictions)
        ]
        for system, predictions in answers.items()
    }


def make_metrics(tables):
    """metrics.json as of a task whose only metric is exact match."""
    systems = {}
    for system, rows in tables.items():
        flags = [row["prediction"] in row["references"] for row in rows]
        langs = {}
        for row, flag in zip(rows, flags, strict=True):
            langs.setdefault(row["lang"], []).append(flag)
        groups = {lang: {"exact_match": score(of)} for lang, of in langs.items()}
        systems[system] = {"exact_match": score(flags), "groups": {"lang": groups}}
    return {
        "task": "tiny",
        "main_metric": "exact_match",
        "rows": {"test": len(rows), "duplicates": 0, "seen_in_train": 0, "unusable": 0},
        "systems": systems,
        "gain": 0.5,
        "retention": 0.75,
    }


def render(texts, langs=("a", "b"), run="default", task="tiny", fact="value", history=HISTORY):
    """A page in which all but the base student repeat the texts, which are right."""
    answers = {s: ["no"] * len(texts) if s == "base" else texts for s in SYSTEMS}
    rows_langs = [langs[i % len(langs)] for i in range(len(texts))]
    tables = make_tables(answers, texts, [[text] for text in texts], rows_langs)
    metrics = make_metrics(tables) | {"task": task}
    manifests = MANIFESTS | {"labels": replace(MANIFESTS["labels"], fingerprint={fact: fact})}
    return render_report(run, metrics, tables, manifests, list(history))
