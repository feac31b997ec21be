"""Compares teacher, base and distilled student, and copying: `python -m jobs.evaluate`.

All systems answer the same test rows, the students with the same prompt, precision and greedy
decoding; the base student with few-shot examples is one more system, and so is each endpoint that
the settings name. Writes predictions/, metrics.json and result files as lm-evaluation-harness names
them to <root>/<run>. A rerun keeps the predictions that match. The last lines say where the student
is no better than without training; if it keeps too little of the teacher's score, the exit code is
6.
"""

import json
import logging

from common.command import run_job
from common.data.testset import TestRows, load_test_rows
from common.errors import StorageError
from common.evaluation.confidence import SIGNALS, read_signals
from common.evaluation.decision import Savings, count_savings
from common.evaluation.gate import check_retention, list_weaknesses
from common.evaluation.lm_eval import write_results
from common.evaluation.online import check_endpoints
from common.evaluation.predictions import read_predictions, write_predictions
from common.evaluation.runner import SystemRunner, describe_system
from common.evaluation.scores import METRICS_FILE, Metrics, score_systems
from common.evaluation.systems import System, list_systems
from common.metrics.metrics import METRICS
from common.records import hash_content
from common.run.lock import wait_for_release
from common.run.manifest import (
    Fingerprint,
    Manifest,
    check_same,
    read_manifest,
    require_manifest,
    write_manifest,
)
from common.run.run import Run, open_run
from common.run.steps import ADAPTER, LABELS, MERGED, PREDICTIONS, LabelSummary, TrainSummary
from common.settings import Settings
from common.student.prompt import fingerprint_student, load_tokenizer
from common.student.weights import check_device
from common.teacher.requests import fingerprint_teacher
from common.training.train_set import fingerprint_labels

SECTIONS = ("run", "task", "storage", "data", "teacher", "student", "evaluate")

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Makes and scores the predictions of all systems.

    Raises:
        InputError: the adapter or the test rows are missing.
        SettingsError: no GPU can be used, or memory is too small.
        TeacherRefusedError, CostCapError: see `common.errors`.
        RetentionError: all is written, and the student keeps less than `evaluate.min_retention`.
    """
    check_device(settings)
    check_endpoints(settings)
    run = open_run(settings)
    storage = run.storage
    adapter = require_manifest(storage, ADAPTER)
    wait_for_release(storage, "evaluate")  # the train job may still be merging
    merged, labels = read_manifest(storage, MERGED), require_manifest(storage, LABELS)
    check_inputs(run, labels, adapter)
    if merged is not None:
        check_same(f"{storage.url}/{MERGED.folder}", merged.fingerprint, adapter.fingerprint)
    test = load_test_rows(settings, run.task)
    fingerprint = make_fingerprint(run, test, adapter)
    systems = list_systems(run.task, merged is not None, settings.evaluate.endpoints)
    scored = describe_scored(run, systems)
    if is_scored(run, fingerprint, scored):
        log.info("evaluate: already done, see %s/%s", storage.url, METRICS_FILE)
        conclude(run, storage.read_json(METRICS_FILE))
        return
    log.info(
        "evaluate: %d test rows, %d dropped as seen in train (but for spaces)",
        len(test.rows),
        test.leaked,
    )
    runner = SystemRunner(run, adapter, merged)
    has_edits = any(METRICS[name].of_edits for name in run.task.metrics)
    for system in systems:
        own = {**fingerprint, **system.fingerprint}
        if read_predictions(storage, system.key, own, ["id"]) is None:
            responses = runner.ask(system, test.rows)
            write_predictions(storage, system.key, own, test.rows, responses, has_edits)
    metrics = score(run, systems, test, fingerprint, labels, adapter)
    described, counts = settings.describe(SECTIONS), metrics["rows"]
    write_manifest(
        storage, PREDICTIONS, fingerprint, counts=counts, scored=scored, settings=described
    )
    conclude(run, metrics)


def conclude(run: Run, metrics: Metrics) -> None:
    """Logs the scores, and where the student is no better than without training.

    Raises a RetentionError if it keeps too little of the teacher's score.
    """
    main_metric = metrics["main_metric"]
    values = {key: figures[main_metric]["value"] for key, figures in metrics["systems"].items()}
    scores = ", ".join(f"{key} {value:.3f}" for key, value in values.items())
    log.info("evaluate: %s: %s", main_metric, scores)
    for weakness in list_weaknesses(metrics):
        log.warning("evaluate: %s", weakness)
    place = f"{run.storage.url}/{METRICS_FILE}"
    check_retention(metrics, run.settings.evaluate.min_retention, place)


def check_inputs(run: Run, labels: Manifest[LabelSummary], adapter: Manifest[TrainSummary]) -> None:
    """Raises an InputError unless labels and adapter match the settings and each other."""
    student = fingerprint_student(run.settings, run.task, load_tokenizer(run.settings))
    expected = {"labels": fingerprint_labels(labels), **student}
    place = f"{run.storage.url}/{ADAPTER.folder}"
    check_same(place, adapter.fingerprint, expected, ignoring=("train.",))
    teacher = fingerprint_teacher(run.settings, run.task)
    place = f"{run.storage.url}/{LABELS.folder}"
    check_same(place, labels.fingerprint, teacher, ignoring=("examples",))


def describe_scored(run: Run, systems: list[System]) -> dict[str, list[str]]:
    """What metrics.json holds: systems, the endpoints' settings, metrics, and the scores' own."""
    evaluate = run.settings.evaluate
    found = {
        "systems": [system.key for system in systems],
        "metrics": run.task.metrics,
        "settings": [f"margin {evaluate.margin:g}", f"usd_per_hour {evaluate.usd_per_hour:g}"],
    }
    endpoints = {s.key: json.dumps(s.fingerprint, sort_keys=True) for s in systems if s.endpoint}
    lines = [f"{key} {described}" for key, described in endpoints.items()]
    return found | ({"endpoints": lines} if lines else {})


def is_scored(run: Run, fingerprint: Fingerprint, scored: dict[str, list[str]]) -> bool:
    """Whether metrics.json has these systems and metrics; removes one without a manifest.

    Raises:
        InputError: the run was evaluated on other rows or with other settings.
    """
    done = read_manifest(run.storage, PREDICTIONS)
    if done is None:
        run.storage.remove(METRICS_FILE)
        return False
    place = f"{run.storage.url}/{PREDICTIONS.folder}"
    check_same(place, done.fingerprint, fingerprint)
    before, now = ({key: set(found) for key, found in s.items()} for s in (done.scored, scored))
    is_same = before == now and done.scored["metrics"] == scored["metrics"]
    return is_same and run.storage.exists(METRICS_FILE)


def score(
    run: Run,
    systems: list[System],
    test: TestRows,
    fingerprint: Fingerprint,
    labels: Manifest[LabelSummary],
    adapter: Manifest[TrainSummary],
) -> Metrics:
    """Scores the predictions on storage; writes metrics.json and the harness's files."""
    columns = ["prediction", "error", "seconds", *SIGNALS]
    found = {
        s.key: read_predictions(run.storage, s.key, {**fingerprint, **s.fingerprint}, columns)
        for s in systems
    }
    tables = {key: table for key, table in found.items() if table is not None}
    if gone := found.keys() - tables.keys():
        place = f"{run.storage.url}/{PREDICTIONS.folder}"
        names = ", ".join(sorted(gone))
        raise StorageError(f"{place} was deleted while this job ran: {names} is lost; run again")
    predictions = {key: table["prediction"].to_pylist() for key, table in tables.items()}
    log.info("evaluate: scoring %d systems", len(tables))
    signals, margin = read_signals(tables["distilled"]), run.settings.evaluate.margin
    metrics = score_systems(run.task, test, predictions, signals, margin)
    for system in systems:
        metrics["systems"][system.key] |= describe_system(run, system, tables[system.key], labels)
    if "cascade" in metrics:
        metrics["savings"] = describe_savings(run, metrics, labels, adapter)
    run.storage.write_json(METRICS_FILE, metrics)
    described = run.settings.describe(SECTIONS)
    write_results(run.storage, run.task, metrics, test.rows, predictions, described)
    return metrics


def describe_savings(
    run: Run,
    metrics: Metrics,
    labels: Manifest[LabelSummary],
    adapter: Manifest[TrainSummary],
) -> Savings:
    """What the chosen cascade saves, and what the run has cost."""
    usd_per_hour, systems = run.settings.evaluate.usd_per_hour, metrics["systems"]
    trained = adapter.summary.get("seconds", 0.0) / 3600 * usd_per_hour
    chosen = metrics["cascade"]["chosen"]
    return count_savings(
        chosen["share"] if chosen else 0.0,
        systems["teacher"].get("cost_usd_per_1000"),
        systems["distilled"]["rows_per_second"],
        usd_per_hour,
        (labels.summary.get("run_cost_usd") or 0.0) + trained,
    )


def make_fingerprint(run: Run, test: TestRows, adapter: Manifest[TrainSummary]) -> Fingerprint:
    """What the predictions depend on."""
    rows = [[row.id, row.references, row.groups] for row in test.rows]
    return {
        # retraining with the same settings may give other weights
        "adapter": adapter.identity,
        "test_rows": f"{len(test.rows)}, {hash_content(rows)}",
        "few_shot": hash_content([shot.model_dump() for shot in run.task.few_shot]),
        **fingerprint_teacher(run.settings, run.task),
        **run.settings.fingerprint("evaluate", ["max_new_tokens", "samples"]),
    }


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
