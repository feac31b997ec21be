"""Lets the teacher label the examples: `python -m jobs.label`.

Ray Data fans the examples out to actors, which call the teacher and journal every reply before it
is parsed. A rerun asks only for what the journal lacks; a finished run is left as it is. Writes
<root>/<run>/labels (one row for each distinct example) and <root>/<run>/journal. `--dry-run` prints
what it would take, and spends nothing.
"""

import logging
import time
from typing import Any

import pyarrow as pa

from common.command import run_job
from common.data.examples import Examples, load_examples, warn_without_test_rows
from common.labels.files import arrange_rows, check_failures, write_parts
from common.labels.forecast import format_forecast, make_forecast
from common.labels.known import Known, label_known, resume
from common.labels.labeler import check_teacher, fingerprint_teacher, make_quota, open_teacher
from common.labels.outcome import make_label
from common.labels.progress import Progress, summarize_calls
from common.prices.prices import find_price
from common.records import Example, count_by_status, hash_content, make_label_table
from common.run.lock import RunLock, hold_run
from common.run.manifest import Fingerprint, is_done, write_manifest
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.model import Task, load_task
from common.teacher.journal import compact_journal
from common.teacher.requests import require_model

SECTIONS = ("run", "task", "storage", "data", "teacher", "label")
STEP = "labels"

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Labels what is not labelled yet.

    Raises:
        SettingsError, InputError, TeacherRefusedError, CostCapError: see `common.errors`.
        DistillError: another job is at work on this run; or more rows failed than
            `label.max_failure_rate` allows; all is written. An InputError, if asking again would
            not help.
    """
    started = time.monotonic()
    require_model(settings.teacher)
    storage, task = RunStorage(settings), load_task(settings.task)
    examples = load_examples(settings, task)
    fingerprint = make_fingerprint(settings, task, examples)
    if is_done(storage, STEP, fingerprint):
        log.info("labels: already done, see %s/%s", storage.url, STEP)
        return
    if settings.label.dry_run:
        forecast(settings, task, examples, label_known(settings, task, storage, examples.rows))
        return
    with hold_run(storage, "label") as lock:
        known = resume(settings, task, storage, examples.rows, lock)
        forecast(settings, task, examples, known)
        missing = [e for e in examples.rows if e.id not in known.rows]
        if missing:
            warn_without_test_rows(settings, task)
        new, figures = label_new(settings, task, missing, known, lock)
        table = arrange_rows(examples, [make_label_table(list(known.rows.values())), *new])
        files = write_parts(storage, STEP, table)
        counts = count_by_status(table)
        seconds = round(time.monotonic() - started, 1)
        summary = {
            "inputs": table.num_rows,
            **counts,
            "duplicates": examples.duplicates,
            "reused": len(known.rows),
            **figures,
            "run_cost_usd": sum_cost(settings, known, figures),
            "seconds": seconds,
        }
        log.info("labels: %s", describe_summary(summary), extra={"figures": summary})
        check_failures(settings, table)
        lock.check()
        write_manifest(
            storage,
            STEP,
            fingerprint,
            files=files,
            counts=counts,
            summary=summary,
            settings=settings.describe(SECTIONS),
        )
        compact_journal(storage)


def forecast(settings: Settings, task: Task, examples: Examples, known: Known) -> None:
    """Prints what the examples will take that are not known yet."""
    make_quota(settings, known.cost_usd)  # tells of a cap without a price
    texts = [e.text for e in examples.rows if e.id not in known.rows and e.text.strip()]
    if texts or settings.label.dry_run:
        expected = make_forecast(settings, task, texts, find_price(settings.teacher))
        text = format_forecast(expected, settings, known.cost_usd)
        if settings.label.dry_run:
            print(text)
        else:
            log.info("%s", text)


def make_fingerprint(settings: Settings, task: Task, examples: Examples) -> Fingerprint:
    """What the labels depend on."""
    ids = [example.id for example in examples.rows]
    return {
        "examples": f"{len(ids)} of {hash_content(ids)}",
        **fingerprint_teacher(settings, task),
    }


def label_new(
    settings: Settings,
    task: Task,
    examples: list[Example],
    known: Known,
    lock: RunLock,
) -> tuple[list[pa.Table], dict[str, Any]]:
    """Asks the teacher; gives the rows, and the figures of the calls.

    Raises:
        DistillError: the teacher cannot be reached, or refuses for good; or a cap is reached.
    """
    asked = [e for e in examples if e.text.strip()]
    blank = make_label_table([make_label(e, [], task) for e in examples if not e.text.strip()])
    if not asked:
        return [blank], {}
    has_price = find_price(settings.teacher) is not None
    progress = Progress(len(asked) * settings.label.samples, has_price)
    with open_teacher(settings) as url:
        check_teacher(settings, url)
        from common.labels.lanes.ray.fan_out import label_on_ray  # Ray takes seconds to import

        quota = make_quota(settings, known.cost_usd)
        tables, snapshot = label_on_ray(
            settings, task, url, asked, known.replies, quota, lock, progress.show
        )
    progress.show(snapshot, is_last=True)
    concurrency = settings.teacher.max_concurrency
    return [blank, *tables], summarize_calls(snapshot, concurrency, has_price)


def sum_cost(settings: Settings, known: Known, figures: dict[str, Any]) -> float | None:
    """What the run has cost in all, this job's calls included; None without a price."""
    if find_price(settings.teacher) is None:
        return None
    return round(known.cost_usd + (figures.get("cost_usd") or 0.0), 6)


def describe_summary(summary: dict[str, Any]) -> str:
    """The summary in one line."""
    return ", ".join(f"{name} {value}" for name, value in summary.items() if value is not None)


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS, {"--dry-run": "DISTILL_LABEL__DRY_RUN"})
