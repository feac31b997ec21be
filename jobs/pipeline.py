"""Runs everything in order: `python -m jobs.pipeline` (label, train, evaluate, report).

Checks the inputs of all jobs before the first call to the teacher. A rerun resumes. With several
rounds of labelling, the student of each round chooses what the next one labels. With several
students, each learns from the same labels, and one table compares them.
"""

import logging
import re
from dataclasses import replace
from typing import Any

from common.command import run_job
from common.data.examples import load_examples
from common.data.testset import load_test_rows
from common.errors import RetentionError, SettingsError
from common.evaluation.metrics_file import read_metrics
from common.evaluation.online import check_endpoints
from common.evaluation.scores import Metrics
from common.labels.copies import copy_labels
from common.labels.rounds import load_pool
from common.report.sweep import make_sweep_table
from common.report.text import render_table
from common.run.manifest import read_manifest
from common.run.rounds import Round, read_rounds, write_round
from common.run.run import Run, open_run
from common.run.steps import LABELS
from common.run.storage import RunStorage
from common.settings import Settings
from common.student.student import check_student
from common.tasks.task import load_task
from common.training.choice import choose_texts, finish_round
from common.training.curve import predict_gain
from common.training.export import check_exports
from common.training.trainer import check_training
from jobs import evaluate, label, report, train

SECTIONS = ()
SWEEP_FILE = "sweep.md"

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Distils, into several students if the settings name some.

    Raises the first DistillError of a job.
    """
    if settings.student.models:
        sweep(settings)
    else:
        distil(settings)


def sweep(settings: Settings) -> None:
    """Distils into each student, from the same labels: the first one in the run itself.

    The others have runs named after them, with a copy of the labels. A student that keeps too
    little of the teacher's score stops none of the others.
    """
    refusal: RetentionError | None = None
    found: dict[str, Metrics] = {}
    runs = list_sweep(settings)
    first = RunStorage(runs[0])
    for own in runs:  # before anything is paid for
        task = load_task(own.task)
        check_student(own, task)
        check_training(own)
        check_exports(own, task)
    for own in runs:
        log.info("==== student %s, run %s", own.student.model, own.run)
        storage = RunStorage(own)
        try:
            if own is runs[0]:
                distil(own)
            else:
                copy_labels(first, storage)
                run_jobs(own, train, evaluate, report)
        except RetentionError as error:
            refusal = refusal or error
        found[own.student.model] = read_metrics(storage)
    text = render_table(make_sweep_table(found))
    first.write_bytes(SWEEP_FILE, f"{text}\n".encode())
    print(f"\n{text}\n\nsweep: {first.url}/{SWEEP_FILE}")
    if refusal:
        raise refusal


def list_sweep(settings: Settings) -> list[Settings]:
    """The settings for each student. Raises a SettingsError if two would share a run."""
    runs: dict[str, Settings] = {}
    for name in settings.student.models:
        short = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rstrip("/").rpartition("/")[2])
        run = f"{settings.run}.{short}" if runs else settings.run
        if run in runs:
            raise SettingsError(
                f"DISTILL_STUDENT__MODELS: {runs[run].student.model!r} and {name!r} would share "
                f"the run {run!r}; rename one of the folders, or take two sweeps"
            )
        student = settings.student.model_copy(update={"model": name, "models": []})
        runs[run] = settings.model_copy(update={"run": run, "student": student})
    return list(runs.values())


def distil(settings: Settings) -> None:
    """All jobs for one student."""
    run = open_run(settings)
    if read_manifest(run.storage, LABELS) is None:
        check_inputs(run)
    run_rounds(run)
    run_jobs(settings, label, train, evaluate, report)


def run_jobs(settings: Settings, *jobs: Any) -> None:
    """Runs jobs in their order; the evaluation's gate ends them after the report."""
    refusal: RetentionError | None = None
    for job in jobs:
        log.info("== %s", job.__name__.removeprefix("jobs."))
        try:
            job.main(settings)
        except RetentionError as error:
            refusal = error
    if refusal:
        raise refusal


def check_inputs(run: Run) -> None:
    """Raises an InputError if the test split, the reference column or the student is missing.

    A SettingsError if an endpoint cannot be asked, or the trainer would refuse the settings.
    """
    check_endpoints(run.settings)
    examples = load_examples(run.settings, run.task)
    test = load_test_rows(run.settings, run.task)
    check_student(run.settings, run.task)
    check_training(run.settings)
    check_exports(run.settings, run.task)
    log.info("inputs: %d examples to label, %d test rows", len(examples), len(test.rows))


def run_rounds(run: Run) -> None:
    """Labels and trains in rounds, but for the last round, or until another is not worth it."""
    total = run.settings.label.rounds
    alone = {"curve": False, "export": [], "merge": False, "push_to": None}
    once = run.settings.train.model_copy(update=alone)
    settings = run.settings.model_copy(update={"train": once})
    while len(read_rounds(run.storage)) + 1 < total:
        number = len(read_rounds(run.storage)) + 1
        log.info("== round %d of %d", number, total)
        label.main(settings)
        train.main(settings)
        pool = load_pool(run)
        finished, more = finish_round(run, pool.made_from), pool.next_size
        if not is_worth_it([*pool.rounds, finished], more, settings.label.stop_gain):
            log.info("rounds: another one is not worth it")
            return  # without a trace: a rerun with another STOP_GAIN may go on
        chosen = choose_texts(run, pool.others, more)
        write_round(run.storage, number, replace(finished, chosen=chosen))


def is_worth_it(rounds: list[Round], more: int, stop_gain: float) -> bool:
    """Whether another round is likely to gain that many points of agreement."""
    points = [(each.labels, each.agreement) for each in rounds if each.agreement is not None]
    gain = predict_gain(points, rounds[-1].held_out, more)
    if gain is None:
        return True
    points_gained = 100 * gain.value
    log.info(
        "rounds: %d more labels are likely to bring %.1f points of agreement (%.1f to %.1f)",
        more,
        points_gained,
        100 * gain.low,
        100 * gain.high,
    )
    return points_gained >= stop_gain


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
