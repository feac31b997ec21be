"""Counts the label rows, and checks how many have failed, without holding them."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypedDict

from common.errors import DistillError, InputError
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.rules import SLOW_PATTERN, LabelRules, explain_slow_pattern
from common.teacher.statuses import TRANSIENT_ERRORS

_MAX_FILTERED_SHARE = 0.5
"""Above this share of filtered rows, a rule is more likely wrong than the teacher."""


class StatusCounts(TypedDict):
    """Rows by status."""

    ok: int
    failed: int
    filtered: int


log = logging.getLogger(__name__)


class LabelCounts:
    """The rows of label files by status and error."""

    def __init__(self, storage: RunStorage, files: Sequence[str]) -> None:
        self._storage, self._files = storage, files
        self._kinds: Counter[tuple[str, str | None]] = Counter()
        for name in files:
            columns = storage.read_columns(name, ["status", "error"]).to_pydict()
            self._kinds.update(zip(columns["status"], columns["error"], strict=True))

    @property
    def rows(self) -> int:
        """All rows."""
        return self._kinds.total()

    @property
    def by_status(self) -> StatusCounts:
        """The rows that are ok, failed and filtered."""
        counts = Counter[str]()
        for (status, _), count in self._kinds.items():
            counts[status] += count
        return {"ok": counts["ok"], "failed": counts["failed"], "filtered": counts["filtered"]}

    @property
    def transient(self) -> int:
        """The rows that failed for a reason that passes."""
        return sum(n for (_, error), n in self._kinds.items() if error in TRANSIENT_ERRORS)

    def find_commonest(self, status: str, column: str) -> tuple[str, str]:
        """The most frequent error of a status, and a value of a column of such a row."""
        errors = {error: n for (found, error), n in self._kinds.items() if found == status}
        commonest = max(errors, key=lambda error: errors[error]) or ""
        return commonest, self._find_row(status, commonest, column)[column] or ""

    def _find_row(self, status: str, error: str, *columns: str) -> dict[str, Any]:
        """Some columns of the first row of a kind; empty if there is none."""
        for name in self._files:
            table = self._storage.read_columns(name, ["status", "error", *columns])
            for row in table.to_pylist():
                if (row["status"], row["error"] or "") == (status, error):
                    return dict(row)
        return dict.fromkeys(columns, "")

    def warn_of_slow_patterns(self, rules: LabelRules) -> None:
        """Warns of rows on which a regular expression of the task has taken too long."""
        if count := self._kinds["filtered", SLOW_PATTERN]:
            row = self._find_row("filtered", SLOW_PATTERN, "id", "text", "response")
            reason = explain_slow_pattern(row["text"], row["response"] or "", rules)
            log.warning(
                "%d of %d rows filtered as %r, such as %s: %s; mend it in the task's "
                "[label_rules], delete the folder labels, and run again: the replies are kept, and "
                "not paid for again",
                *(count, self.rows, SLOW_PATTERN, row["id"], reason or "a pattern is slow"),
            )

    def check(self, settings: Settings) -> None:
        """Warns if most rows were filtered.

        Raises:
            DistillError: more rows have failed than `label.max_failure_rate`.
            InputError: so they have, and running again will not help.
        """
        counts = self.by_status
        if counts["filtered"] > _MAX_FILTERED_SHARE * self.rows:
            kind, response = self.find_commonest("filtered", "response")
            log.warning(
                "%d of %d rows filtered, mostly by %r, such as the response %r; to keep more, "
                "change the task's [label_rules], delete the folder labels, and run again: the "
                "replies are kept, and not paid for again",
                *(counts["filtered"], self.rows, kind, response[:100]),
            )
        if counts["failed"] / self.rows <= settings.label.max_failure_rate:
            return
        kind, message = self.find_commonest("failed", "message")
        text = (
            f"{counts['failed']} of {self.rows} rows failed, mostly by {kind!r}"
            f"{f' ({message})' if message else ''}; DISTILL_LABEL__MAX_FAILURE_RATE="
            f"{settings.label.max_failure_rate} allows fewer. The answers are kept"
        )
        if kind in TRANSIENT_ERRORS:
            raise DistillError(f"{text}: run again to ask for the rest")
        raise InputError(f"{text}; running again will not help")
