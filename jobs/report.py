"""Writes the report of a run: `python -m jobs.report`.

Reads metrics, predictions and manifests. Writes <root>/<run>/report.html, a single file that needs
no network, and report.md: the same figures for a terminal or a pull request. `--serve` serves both
over HTTP until stopped.
"""

import logging
from contextlib import suppress
from typing import Any, cast

from common.command import run_job
from common.errors import InputError, StoppedError
from common.evaluation.predictions import read_predictions
from common.evaluation.scores import METRICS_FILE, Metrics
from common.report.answers import choose_rows
from common.report.facts import Manifests
from common.report.page import render_report
from common.report.server import make_server
from common.report.tables import Scores, make_main_table
from common.report.text import render_summary, render_text
from common.run.manifest import Manifest, read_manifest, require_manifest
from common.run.steps import ADAPTER, CURVE, LABELS, PREDICTIONS
from common.run.storage import RunStorage
from common.settings import Settings
from common.student.adapter import read_history

SECTIONS = ("run", "storage", "report")
REPORT_FILE, TEXT_FILE = "report.html", "report.md"
_FIX = "delete the run's predictions/ and metrics.json and run python -m jobs.evaluate"

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Writes a run's report. Raises an InputError if the run has not been evaluated."""
    storage = RunStorage(settings)
    evaluated = require_manifest(storage, PREDICTIONS)
    metrics = _read_metrics(storage)
    tables = {name: _read_rows(storage, name, evaluated, metrics) for name in metrics["systems"]}
    labels, adapter, curve = (read_manifest(storage, step) for step in (LABELS, ADAPTER, CURVE))
    if curve and adapter and curve.fingerprint != adapter.fingerprint:  # of an earlier training
        curve = None
    found = [labels, adapter, curve, evaluated]
    manifests: Manifests = {manifest.step: manifest for manifest in found if manifest}
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


def _read_metrics(storage: RunStorage) -> Metrics:
    content = storage.read_json(METRICS_FILE)
    if not isinstance(content, dict) or "systems" not in content:
        raise InputError(f"{storage.url}/{METRICS_FILE} holds no metrics; {_FIX}")
    return cast(Metrics, content)


def _read_rows(
    storage: RunStorage, system: str, evaluated: Manifest[Any], metrics: Metrics
) -> list[dict[str, Any]]:
    """Some of the scored predictions of a system, the same rows of each, in their order."""
    table = read_predictions(storage, system, evaluated.fingerprint)
    if table is None or len(table) != metrics["rows"]["test"]:
        place = f"{storage.url}/{PREDICTIONS.folder}/{system}.parquet"
        raise InputError(f"{place} is not what was scored; {_FIX}")
    return choose_rows(table)


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS, {"--serve": "DISTILL_REPORT__SERVE"})
