"""Labels the examples with the teacher: `python -m jobs.label`.

Ray Data fans the examples out to actors, which call the teacher and journal every reply before
parsing it. A rerun asks only for replies that the journal lacks. Writes <root>/<run>/labels (one
row per distinct example) and <root>/<run>/journal. `--dry-run` prints a forecast and calls nothing;
`--preview 10` asks for ten examples, shows their answers and labels, and forecasts the rest.
"""

import logging
import time

from common.command import run_job
from common.data.examples import Examples, load_examples, warn_without_test_rows
from common.labels.files import arrange_rows, check_failures, count_transient, write_parts
from common.labels.forecast import format_forecast, make_forecast
from common.labels.lane import Lane
from common.labels.lanes.batch.chunks import check_no_chunks
from common.labels.lanes.batch.lane import BatchLane
from common.labels.lanes.local import LocalLane
from common.labels.preview import format_preview
from common.labels.resume import Known, read_known
from common.labels.session import Session
from common.records import LabelRow, count_by_status, hash_content, make_label_table
from common.run.lock import RunLock, hold_run
from common.run.manifest import Fingerprint, is_done, read_manifest, write_manifest
from common.run.run import Run, open_run
from common.run.steps import ADAPTER, LABELS, LabelSummary
from common.settings import Settings
from common.teacher.journal import compact_journal
from common.teacher.requests import fingerprint_teacher, require_model

SECTIONS = ("run", "task", "storage", "data", "teacher", "label")
FLAGS = {"--dry-run": "DISTILL_LABEL__DRY_RUN", "--preview": "DISTILL_LABEL__PREVIEW"}

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Labels the examples that have no label yet.

    Raises:
        SettingsError, InputError, TeacherRefusedError, CostCapError: see `common.errors`.
        DistillError: another job holds the run; or, after all is written, more rows failed than
            `label.max_failure_rate` allows (an InputError if asking again would not help).
    """
    started = time.monotonic()
    require_model(settings.teacher)
    run = open_run(settings)
    examples = load_examples(settings, run.task)
    if settings.label.preview:
        with hold_run(run.storage, "label") as lock:
            preview(run, examples, lock)
        return
    fingerprint = make_fingerprint(run, examples)
    if is_done(run.storage, LABELS, fingerprint) and not is_worth_asking_again(run):
        log.info("labels: already done, see %s/%s", run.storage.url, LABELS.folder)
    elif settings.label.dry_run:
        forecast(run, examples, read_known(run, examples.rows))
    else:
        with hold_run(run.storage, "label") as lock:
            label(run, examples, fingerprint, lock, started)


def label(
    run: Run, examples: Examples, fingerprint: Fingerprint, lock: RunLock, started: float
) -> None:
    """Asks for what the journal lacks, and writes all rows; `started` is the job's start."""
    session = Session(run, lock, examples.rows)
    known, reused = session.known, len(session.known.rows)
    forecast(run, examples, known)
    if session.missing:
        warn_without_test_rows(run.settings, run.task)
    new, figures = session.ask(lambda: make_lane(run), "labels")
    if run.settings.label.lane == "batch" and run.settings.label.batch_rest == "online":
        session = Session(run, lock, examples.rows)
        if session.missing:
            new, figures = session.ask(lambda: make_ray_lane(run), "the batches' rest")
            known = session.known
    table = arrange_rows(examples, [make_label_table(list(known.rows.values())), *new])
    files, counts = write_parts(run.storage, LABELS.folder, table), count_by_status(table)
    summary: LabelSummary = {
        "inputs": table.num_rows,
        "ok": counts["ok"],
        "failed": counts["failed"],
        "filtered": counts["filtered"],
        "duplicates": examples.duplicates,
        "reused": reused,
        "transient": count_transient(table),
        **figures,
        "run_cost_usd": sum_cost(run, known, figures),
        "seconds": round(time.monotonic() - started, 1),
    }
    line = ", ".join(f"{name} {value}" for name, value in summary.items() if value is not None)
    log.info("labels: %s", line, extra={"figures": summary})
    check_failures(run.settings, table)
    if summary["transient"]:
        log.warning(
            "%d rows failed for passing reasons; run again before training to ask for them",
            summary["transient"],
        )
    lock.check()
    described = run.settings.describe(SECTIONS)
    write_manifest(
        run.storage, LABELS, fingerprint, summary, files=files, counts=counts, settings=described
    )
    compact_journal(run.storage)


def preview(run: Run, examples: Examples, lock: RunLock) -> None:
    """Labels the first examples, shows them, and forecasts the rest; their replies are kept."""
    first = sorted(examples.rows, key=lambda example: example.id)[: run.settings.label.preview]
    session = Session(run, lock, first)
    new, _ = session.ask(LocalLane, "preview")
    asked = [LabelRow(**row) for table in new for row in table.to_pylist()]
    rows = session.known.rows | {row.id: row for row in asked}
    print(format_preview(list(rows.values())))
    print()
    forecast(run, examples, read_known(run, examples.rows))


def is_worth_asking_again(run: Run) -> bool:
    """Whether rows failed for passing reasons, and no student is trained on the others yet."""
    manifest = read_manifest(run.storage, LABELS)
    transient = manifest.summary.get("transient", 0) if manifest else 0
    return transient > 0 and read_manifest(run.storage, ADAPTER) is None


def forecast(run: Run, examples: Examples, known: Known) -> None:
    """Prints or logs the expected cost and time of the examples without a label."""
    settings = run.settings
    texts = [e.text for e in examples.rows if e.id not in known.rows and e.text.strip()]
    only_looks = settings.label.dry_run or settings.label.preview
    if texts or only_looks:
        labelled = list(known.rows.values())
        expected = make_forecast(settings, run.task, texts, run.price, labelled)
        text = format_forecast(expected, settings, known.cost_usd)
        if only_looks:
            print(text)
        else:
            log.info("%s", text)


def make_fingerprint(run: Run, examples: Examples) -> Fingerprint:
    """What the labels depend on."""
    ids = [example.id for example in examples.rows]
    return {
        "examples": f"{len(ids)} of {hash_content(ids)}",
        **fingerprint_teacher(run.settings, run.task),
    }


def make_lane(run: Run) -> Lane:
    """The lane that carries the requests. Raises an InputError if another one has them."""
    if run.settings.label.lane == "batch":
        return BatchLane()
    check_no_chunks(run.storage)
    return make_ray_lane(run)


def make_ray_lane(run: Run) -> Lane:
    """The lane of Ray's actors."""
    from common.labels.lanes.ray.lane import RayLane  # its import takes seconds

    return RayLane(run.settings.label.dashboard_host)


def sum_cost(run: Run, known: Known, figures: LabelSummary) -> float | None:
    """Dollars of the whole run, with this job's calls; None if nobody tells them."""
    cost_usd = round(known.cost_usd + (figures.get("cost_usd") or 0.0), 6)
    return cost_usd if run.price or cost_usd else None


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS, FLAGS)
