"""Writes the report that a person looks at: `python -m jobs.report`.

Reads metrics, predictions and manifests of a run. Writes <root>/<run>/report.html, a single file
that needs no network, and report.md beside it: the same figures for a terminal or a pull request.
"""

import json
import logging
from typing import Any

from common.command import run_job
from common.errors import InputError
from common.evaluation.scores import METRICS_FILE
from common.manifest import read_manifest
from common.records import get_rows
from common.report.figures import Scores, make_main_table
from common.report.page import render_report
from common.report.text import render_summary, render_text
from common.settings import Settings
from common.storage import RunStorage
from common.student.adapter import HISTORY_FILE

SECTIONS = ("run", "storage")
REPORT_FILE, TEXT_FILE = "report.html", "report.md"
PREDICTIONS = "predictions"

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Renders the report of a run, and prints its main table and where it is.

    Raises:
        InputError: the run has not been evaluated.
    """
    storage = RunStorage(settings)
    if not storage.exists(METRICS_FILE):
        raise InputError(
            f"{storage.url}/{METRICS_FILE} does not exist; run python -m jobs.evaluate first, with "
            "the same DISTILL_RUN and DISTILL_STORAGE__ROOT"
        )
    metrics = storage.read_json(METRICS_FILE)
    tables = {
        system: get_rows(storage.read_table(f"{PREDICTIONS}/{system}.parquet"))
        for system in metrics["systems"]
    }
    manifests = {
        step: read_manifest(storage, step) or {} for step in ("labels", "adapter", PREDICTIONS)
    }
    history = _read_history(storage)
    html = render_report(settings.run, metrics, tables, manifests, history)
    storage.write_bytes(REPORT_FILE, html.encode())
    text = render_text(settings.run, metrics, manifests)
    storage.write_bytes(TEXT_FILE, text.encode())
    scores = Scores(metrics)
    print(render_summary(scores, make_main_table(scores)))
    print(f"\nreport: {storage.url}/{REPORT_FILE}\n        {storage.url}/{TEXT_FILE}")


def _read_history(storage: RunStorage) -> list[dict[str, Any]]:
    has_any = storage.exists(HISTORY_FILE)
    lines = storage.read_bytes(HISTORY_FILE).splitlines() if has_any else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
