"""Writes the report of a run: `python -m jobs.report`.

Reads metrics, predictions and manifests. Writes <root>/<run>/report.html, a single file that needs
no network, and report.md: the same figures for a terminal or a pull request. `--serve` serves both
over HTTP until stopped. `--compare one two` shows these runs side by side instead: as tables, and
as <root>/compare.html.
"""

import logging
from contextlib import suppress
from typing import Any

from common.command import run_job
from common.errors import InputError, StoppedError
from common.evaluation.metrics_file import read_metrics
from common.evaluation.predictions import read_predictions
from common.evaluation.scores import METRICS_FILE, Metrics
from common.report.answers import choose_rows
from common.report.compare import ComparedRun
from common.report.compare_page import render_comparison, render_comparison_text
from common.report.facts import Manifests
from common.report.page import render_report
from common.report.server import make_server
from common.report.tables import Scores, make_main_table
from common.report.text import render_summary, render_text
from common.run.manifest import Manifest, read_manifest, require_manifest
from common.run.steps import ADAPTER, CURVE, LABELS, PREDICTIONS, Step
from common.run.storage import RunStorage
from common.settings import Settings
from common.student.adapter import read_history

SECTIONS = ("run", "storage", "report")
REPORT_FILE, TEXT_FILE = "report.html", "report.md"
COMPARE_FILE = "compare.html"
_FIX = "delete the run's predictions/ and metrics.json and run python -m jobs.evaluate"

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Writes a run's report, or compares several. Raises an InputError if one is not evaluated."""
    if settings.report.compare:
        compare_runs(settings)
        return
    storage = RunStorage(settings)
    evaluated = require_manifest(storage, PREDICTIONS)
    metrics = read_metrics(storage)
    tables = {name: _read_rows(storage, name, evaluated, metrics) for name in metrics["systems"]}
    manifests = _read_manifests(storage)
    history = read_history(storage)
    html = render_report(settings.run, metrics, tables, manifests, history)
    storage.write_bytes(REPORT_FILE, html.encode())
    text = render_text(settings.run, metrics, manifests)
    storage.write_bytes(TEXT_FILE, text.encode())
    scores = Scores(metrics)
    print(render_summary(scores, make_main_table(scores)))
    print(f"\nreport: {storage.url}/{REPORT_FILE}\n        {storage.url}/{TEXT_FILE}")
    if settings.report.serve:
        with make_server(storage, settings.report.serve) as server:
            log.info("report: http://%s", settings.report.serve)
            with suppress(StoppedError):
                server.serve_forever()


def compare_runs(settings: Settings) -> None:
    """Prints tables of several runs and writes compare.html. An InputError names a missing one."""
    runs = [_read_run(settings, name) for name in settings.report.compare]
    root = RunStorage(settings.model_copy(update={"run": ""}))
    root.write_bytes(COMPARE_FILE, render_comparison(runs).encode())
    print(render_comparison_text(runs))
    print(f"\ncomparison: {root.url.rstrip('/')}/{COMPARE_FILE}")


def _read_run(settings: Settings, name: str) -> ComparedRun:
    storage = RunStorage(settings.model_copy(update={"run": name}))
    if not storage.exists(METRICS_FILE):
        raise InputError(
            f"{storage.url}/{METRICS_FILE} does not exist: the run {name!r} is not evaluated; run "
            f"python -m jobs.evaluate with DISTILL_RUN={name}, or leave it out of the comparison"
        )
    evaluated = read_manifest(storage, PREDICTIONS)
    columns = ["id", "text", "references", "prediction"]
    answers = evaluated and read_predictions(storage, "distilled", evaluated.fingerprint, columns)
    return ComparedRun(name, Scores(read_metrics(storage)), _read_manifests(storage), answers)


def _read_manifests(storage: RunStorage) -> Manifests:
    """The manifests of the steps that are done, but a learning curve of an earlier training."""
    steps: tuple[Step[Any], ...] = (LABELS, ADAPTER, CURVE, PREDICTIONS)
    found = {step.folder: read_manifest(storage, step) for step in steps}
    curve, adapter = found[CURVE.folder], found[ADAPTER.folder]
    if curve and adapter and curve.fingerprint != adapter.fingerprint:
        found[CURVE.folder] = None
    return {folder: manifest for folder, manifest in found.items() if manifest}


def _read_rows(
    storage: RunStorage, system: str, evaluated: Manifest[Any], metrics: Metrics
) -> list[dict[str, Any]]:
    """Some of the scored predictions of a system, the same rows of each, in their order."""
    found = metrics["systems"][system].get("endpoint")
    own = {"endpoint": found} if found else {}
    table = read_predictions(storage, system, {**evaluated.fingerprint, **own})
    if table is None or len(table) != metrics["rows"]["test"]:
        place = f"{storage.url}/{PREDICTIONS.folder}/{system}.parquet"
        raise InputError(f"{place} is not what was scored; {_FIX}")
    return choose_rows(table)


if __name__ == "__main__":
    run_job(
        main,
        __doc__,
        SECTIONS,
        {"--serve": "DISTILL_REPORT__SERVE", "--compare": "DISTILL_REPORT__COMPARE"},
    )
