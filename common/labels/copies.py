"""The labels of one run for another, which then need not be paid for again."""

from common.run.manifest import read_manifest, require_manifest, write_manifest
from common.run.steps import LABELS
from common.run.storage import RunStorage
from common.teacher.journal import FOLDER


def copy_labels(source: RunStorage, target: RunStorage) -> None:
    """Copies finished labels, and the replies that no label part holds: those to test rows.

    Raises:
        InputError: the labels are unfinished.
    """
    manifest = require_manifest(source, LABELS)
    if read_manifest(target, LABELS) is not None:
        return
    replies = [name for name in source.list_files(FOLDER) if name.endswith(".jsonl")]
    for name in [*replies, *manifest.files]:
        target.write_bytes(name, source.read_bytes(name))
    write_manifest(
        target,
        LABELS,
        manifest.fingerprint,
        manifest.summary,
        files=manifest.files,
        counts=manifest.counts,
        settings=manifest.settings,
    )
