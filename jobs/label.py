"""Lets the teacher label the examples: `python -m jobs.label`.

Ray Data fans the examples out to actors, which call the teacher and journal every reply before it
is parsed. A rerun asks only for what the journal lacks; a finished run is left as it is. Writes
<root>/<run>/labels (one row for each distinct example) and <root>/<run>/journal.
"""

import asyncio
import logging
import time
from collections import Counter
from typing import Any

from common.command import run_job
from common.data import Examples, load_examples
from common.errors import DistillError, InputError
from common.labeler import Labeler, fingerprint_teacher, label_known, open_teacher
from common.manifest import Fingerprint, hash_content, is_done, write_manifest
from common.records import (
    Example,
    LabelRow,
    count_by_status,
    make_label_table,
)
from common.replies import TRANSIENT_ERRORS
from common.settings import Settings
from common.storage import RunStorage
from common.tasks import Task, load_task

SECTIONS = ("run", "task", "storage", "data", "teacher", "label")
STEP = "labels"
_PART_ROWS = 50_000

log = logging.getLogger(__name__)


def main(settings: Settings) -> None:
    """Labels what is not labelled yet.

    Raises:
        SettingsError, InputError, TeacherRefusedError: see `common.errors`.
        DistillError: more rows failed than `label.max_failure_rate` allows; all is written. An
            InputError, if asking again would not help.
    """
    started = time.monotonic()
    storage, task = RunStorage(settings), load_task(settings.task)
    examples = load_examples(settings, task)
    fingerprint = make_fingerprint(settings, task, examples)
    if is_done(storage, STEP, fingerprint):
        log.info("labels: already done, see %s/%s", storage.url, STEP)
        return
    known = label_known(settings, task, storage, examples.rows)
    new = label_new(settings, task, [e for e in examples.rows if e.id not in known])
    rows = [(known | new)[example.id] for example in examples.rows]
    files = [
        _write_part(storage, number, rows[start : start + _PART_ROWS])
        for number, start in enumerate(range(0, len(rows), _PART_ROWS))
    ]
    counts = count_by_status(rows)
    summary = summarize(rows, examples, len(known), time.monotonic() - started)
    _check_failures(settings, counts, rows)
    for stale in set(storage.list_files(STEP)) - set(files):
        storage.remove(stale)  # parts of an earlier try that had more
    write_manifest(
        storage,
        STEP,
        fingerprint,
        files=files,
        counts=counts,
        summary=summary,
        settings=settings.describe(SECTIONS),
    )
    log.info("labels: %s", ", ".join(f"{name} {value}" for name, value in summary.items()))


def make_fingerprint(settings: Settings, task: Task, examples: Examples) -> Fingerprint:
    """What the labels depend on."""
    ids = [example.id for example in examples.rows]
    return {
        "examples": f"{len(ids)} of {hash_content(ids)}",
        **fingerprint_teacher(settings, task),
    }


def label_new(settings: Settings, task: Task, examples: list[Example]) -> dict[str, LabelRow]:
    """Asks the teacher; gives the rows by id.

    Raises:
        DistillError: the teacher cannot be reached, or refuses for good.
    """
    if not examples:
        return {}
    with open_teacher(settings) as url:
        asyncio.run(_check_teacher(settings, task, url))
        from common.fan_out import label_on_ray  # Ray takes seconds to import

        return label_on_ray(settings, task, url, examples)


async def _check_teacher(settings: Settings, task: Task, url: str) -> None:
    """Makes sure that the teacher can be reached, before anything is written."""
    labeler = Labeler(settings, task, url)
    try:
        await labeler.check()
    finally:
        await labeler.close()


def _write_part(storage: RunStorage, number: int, rows: list[LabelRow]) -> str:
    name = f"{STEP}/part-{number:05}.parquet"
    storage.write_table(name, make_label_table(rows))
    return name


def summarize(
    rows: list[LabelRow], examples: Examples, reused: int, seconds: float
) -> dict[str, Any]:
    """The figures of a run, for the log and the manifest."""
    return {
        "inputs": len(rows),
        **count_by_status(rows),
        "duplicates": examples.duplicates,
        "reused": reused,
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "completion_tokens": sum(row.completion_tokens for row in rows),
        "seconds": round(seconds, 1),
    }


def _check_failures(settings: Settings, counts: dict[str, int], rows: list[LabelRow]) -> None:
    if counts["failed"] / len(rows) <= settings.label.max_failure_rate:
        return
    kinds = Counter(row.error for row in rows if row.status == "failed")
    (kind, _), *_ = kinds.most_common(1)
    message = next(row.message for row in rows if row.error == kind)
    text = (
        f"{counts['failed']} of {len(rows)} rows failed, mostly by {kind!r}"
        f"{f' ({message})' if message else ''}; DISTILL_LABEL__MAX_FAILURE_RATE="
        f"{settings.label.max_failure_rate} allows fewer. What was answered is kept"
    )
    if kind in TRANSIENT_ERRORS:
        raise DistillError(f"{text}: run again to ask for the rest")
    raise InputError(f"{text}; running again will not change it")


if __name__ == "__main__":
    run_job(main, __doc__, SECTIONS)
