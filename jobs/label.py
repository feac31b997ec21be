"""Labels the examples with the teacher: `python -m jobs.label`.

Ray Data fans the examples out to actors, which call the teacher and journal every reply before
parsing it. A rerun asks only for replies that the journal lacks. Writes <root>/<run>/labels (one
row per distinct example) and <root>/<run>/journal. `--dry-run` prints a forecast and calls nothing;
`--preview 10` asks for ten examples, shows their answers and labels, and forecasts the rest.
"""

import logging
import time
from collections.abc import Sequence

from common.command import run_job
from common.data.examples import Examples
from common.data.testset import warn_without_test_rows
from common.labels.counts import LabelCounts
from common.labels.forecast import format_forecast, make_forecast
from common.labels.label_row import Outcome
from common.labels.lane import Lane
from common.labels.lanes.batch.chunks import check_no_chunks
from common.labels.lanes.batch.lane import BatchLane
from common.labels.lanes.local import LocalLane
from common.labels.parts import Parts
from common.labels.preview import format_preview
from common.labels.resume import Known, resume
from common.labels.rounds import forget_round, load_round, starts_round
from common.labels.session import Session
from common.records import LabelRow, hash_content
from common.run.lock import RunLock, hold_run
from common.run.manifest import Fingerprint, is_done, read_manifest, write_manifest
from common.run.run import Run, open_run
from common.run.steps import ADAPTER, LABELS, LabelSummary
from common.settings import Settings
from common.teacher.journal import compact_journal
from common.teacher.requests import fingerprint_teacher, require_model
from common.teacher.sealed import tidy_journal

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
    examples = load_round(run)
    fingerprint = make_fingerprint(run, examples)
    if settings.label.preview:
        with hold_run(run.storage, "label") as lock:
            preview(run, examples, Parts(run, hash_content(fingerprint)), lock)
        return
    is_next_round = starts_round(run, fingerprint["examples"])
    is_finished = not is_next_round and is_done(run.storage, LABELS, fingerprint)
    if is_finished and not is_worth_asking_again(run):
        log.info("labels: already done, see %s/%s", run.storage.url, LABELS.folder)
    elif settings.label.dry_run:
        forecast(run, *Parts(run, hash_content(fingerprint)).look(examples))
    else:
        with hold_run(run.storage, "label") as lock:
            if is_next_round:
                forget_round(run.storage)
            label(run, examples, fingerprint, lock, started)


def label(
    run: Run, examples: Examples, fingerprint: Fingerprint, lock: RunLock, started: float
) -> None:
    """Asks for what the journal lacks, and writes all rows; `started` is the job's start."""
    parts = Parts(run, hash_content(fingerprint))
    known = parts.resume(examples)
    reused = len(examples) - len(known.missing)
    forecast(run, known, parts.read_sample())
    if len(known.missing):
        warn_without_test_rows(run.settings, run.task)
    rows, figures = Session(run, lock, known, parts).ask(lambda: make_lane(run), "labels")
    if run.settings.label.lane == "batch" and run.settings.label.batch_rest == "online":
        rest = parts.resume(examples)
        if len(rest.missing):
            known, session = rest, Session(run, lock, rest, parts)
            rows, figures = session.ask(lambda: make_ray_lane(run), "the batches' rest")
    files = parts.finish(examples, rows)
    counts = LabelCounts(run.storage, files)
    summary: LabelSummary = {
        "inputs": counts.rows,
        **counts.by_status,
        "duplicates": examples.duplicates,
        "reused": reused,
        "transient": counts.transient,
        **figures,
        "run_cost_usd": sum_cost(run, known, figures),
        "seconds": round(time.monotonic() - started, 1),
    }
    line = ", ".join(f"{name} {value}" for name, value in summary.items() if value is not None)
    log.info("labels: %s", line, extra={"figures": summary})
    counts.warn_of_slow_patterns(run.task.label_rules)
    counts.check(run.settings)
    if summary["transient"]:
        log.warning(
            "%d rows failed for passing reasons; run again before training to ask for them",
            summary["transient"],
        )
    lock.check()
    described, by_status = run.settings.describe(SECTIONS), dict(counts.by_status)
    write_manifest(
        run.storage, LABELS, fingerprint, summary, files=files, counts=by_status, settings=described
    )
    parts.remove_others(files)
    tidy_journal(run.storage)
    compact_journal(run.storage)


def preview(run: Run, examples: Examples, parts: Parts, lock: RunLock) -> None:
    """Labels the first examples, shows them, and forecasts the rest; their replies are kept."""
    first = examples.first[: run.settings.label.preview]
    rows: dict[str, LabelRow] = {}

    def keep(outcome: Outcome) -> None:
        rows[outcome.row.id] = outcome.row

    tables, _ = Session(run, lock, resume(run, Examples.of(first), keep)).ask(LocalLane, "preview")
    rows |= {row["id"]: LabelRow(**row) for table in tables for row in table.to_pylist()}
    print(format_preview(list(rows.values())))
    print()
    forecast(run, *parts.look(examples))


def is_worth_asking_again(run: Run) -> bool:
    """Whether rows failed for passing reasons, and no student is trained on the others yet."""
    manifest = read_manifest(run.storage, LABELS)
    transient = manifest.summary.get("transient", 0) if manifest else 0
    return transient > 0 and read_manifest(run.storage, ADAPTER) is None


def forecast(run: Run, known: Known, labelled: Sequence[LabelRow]) -> None:
    """Prints or logs the expected cost and time of the examples without a label.

    Some that are `labelled` correct the estimate.
    """
    settings = run.settings
    asked = known.missing.select(~known.missing.mark_blank())
    only_looks = settings.label.dry_run or settings.label.preview
    if len(asked) or only_looks:
        expected = make_forecast(settings, run.task, asked, run.price, labelled)
        text = format_forecast(expected, settings, known.cost_usd)
        if only_looks:
            print(text)
        else:
            log.info("%s", text)


def make_fingerprint(run: Run, examples: Examples) -> Fingerprint:
    """What the labels depend on."""
    return {
        "examples": f"{len(examples)} of {examples.hash_ids()}",
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
