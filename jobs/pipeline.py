"""Runs everything in order: `python -m jobs.pipeline` (label, train, evaluate, report).

Checks the inputs of all jobs before the first call to the teacher. A rerun resumes. With several
rounds of labelling, the student of each round chooses what the next one labels.
"""

import logging
from dataclasses import replace

from common.command import run_job
from common.data.examples import load_examples
from common.data.testset import load_test_rows
from common.labels.rounds import load_others, size_round
from common.run.manifest import read_manifest
from common.run.rounds import Round, read_rounds, write_round
from common.run.run import Run, open_run
from common.run.steps import LABELS
from common.settings import Settings
from common.student.student import check_student
from common.training.choice import finish_round
from common.training.curve import predict_gain
from jobs import evaluate, label, report, train

SECTIONS = ()

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Distils; raises the first DistillError of a job."""
    run = open_run(settings)
    if read_manifest(run.storage, LABELS) is None:
        check_inputs(run)
    run_rounds(run)
    for job in (label, train, evaluate, report):
        log.info("== %s", job.__name__.removeprefix("jobs."))
        job.main(settings)


def check_inputs(run: Run) -> None:
    """Raises an InputError if the test split, the reference column or the student is missing."""
    examples = load_examples(run.settings, run.task)
    test = load_test_rows(run.settings, run.task)
    check_student(run.settings, run.task)
    log.info("inputs: %d examples to label, %d test rows", len(examples), len(test.rows))


def run_rounds(run: Run) -> None:
    """Labels and trains in rounds, but for the last round, or until another is not worth it."""
    rounds, total = read_rounds(run.storage), run.settings.label.rounds
    while len(rounds) + 1 < total and not (rounds and not rounds[-1].chosen):
        number = len(rounds) + 1
        log.info("== round %d of %d", number, total)
        label.main(run.settings)
        train.main(run.settings)
        budget, others = load_others(run)
        more = size_round(budget, total, number + 1) - size_round(budget, total, number)
        finished = finish_round(run, others, more)
        if not is_worth_it([*rounds, finished], more, run.settings.label.stop_gain):
            finished = replace(finished, chosen=[])
        write_round(run.storage, number, finished)
        rounds.append(finished)


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
