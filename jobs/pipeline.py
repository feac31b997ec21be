"""Runs everything in order: `python -m jobs.pipeline` (label, train, evaluate, report).

Checks the inputs of all jobs before the first call to the teacher. A rerun resumes.
"""

import logging

from common.command import run_job
from common.data.examples import load_examples
from common.data.testset import load_test_rows
from common.run.manifest import read_manifest
from common.run.steps import LABELS
from common.run.storage import RunStorage
from common.settings import Settings
from common.student.student import check_student
from common.tasks.task import load_task
from jobs import evaluate, label, report, train

SECTIONS = ()

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Distils; raises the first DistillError of a job."""
    if read_manifest(RunStorage(settings), LABELS) is None:
        check_inputs(settings)
    for job in (label, train, evaluate, report):
        log.info("== %s", job.__name__.removeprefix("jobs."))
        job.main(settings)


def check_inputs(settings: Settings) -> None:
    """Raises an InputError if the test split, the reference column or the student is missing."""
    task = load_task(settings.task)
    examples, test = load_examples(settings, task), load_test_rows(settings, task)
    check_student(settings, task)
    log.info("inputs: %d examples to label, %d test rows", len(examples), len(test.rows))


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
