"""The labels of one run for another, which then need not be paid for again."""

from common.labels.endpoints import FOLDER as ENDPOINTS
from common.labels.endpoints import RECORD
from common.run.manifest import check_same, read_manifest, require_manifest, write_manifest
from common.run.steps import LABELS
from common.run.storage import RunStorage
from common.teacher.journal import FOLDER


def copy_labels(source: RunStorage, target: RunStorage) -> None:
    """Copies finished labels, and the replies that no label part holds: those to test rows.

    Those of endpoints, too.

    Raises:
        InputError: the labels are unfinished, or the other run has some of its own.
    """
    manifest, copied = require_manifest(source, LABELS), read_manifest(target, LABELS)
    for folder in (FOLDER, ENDPOINTS):
        kept = [n for n in source.list_files(folder) if n.endswith((".jsonl", RECORD))]
        for name in sorted(set(kept) - set(target.list_files(folder))):
            target.write_bytes(name, source.read_bytes(name))
    if copied is not None:
        place = f"{target.url}/{LABELS.folder}"
        before, now = ({**each.fingerprint, **each.counts} for each in (copied, manifest))
        check_same(place, before, now)
        return
    for name in manifest.files:
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
