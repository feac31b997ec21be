"""The progress and the summary of a session's calls."""

import logging
import sys
import time
from collections.abc import Callable

from common.labels.forecast import optimum_seconds
from common.quota.protocol import Snapshot, Totals
from common.run.steps import LabelSummary
from common.teacher.dialect import describe

_LOG_SECONDS = 5.0
_FORETELLING_SHARE = 0.01
"""The share of the answers from which the whole cost is foretold, reasoning and all."""
_RATE_SECONDS = 15.0
"""The rate is an average over this time."""

log = logging.getLogger(__name__)


class Progress:
    """Shows the calls' progress in one line: in place on a terminal, else logged."""

    def __init__(
        self,
        calls: int,
        has_price: bool,
        name: str = "labels",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`calls` is the number of answers to expect; `name` is what they are for."""
        self._name, self._calls, self._has_price, self._clock = name, calls, has_price, clock
        self._logged_at = clock()
        self._marks: list[tuple[float, int]] = []
        self._in_place = sys.stderr.isatty()

    def show(self, snapshot: Snapshot, is_last: bool = False) -> None:
        """Shows the state, unless the last line is recent."""
        now, answered = self._clock(), snapshot.totals.answered + snapshot.totals.failed
        if not self._marks or answered <= self._marks[0][1]:
            self._marks = [(now, answered)]  # the rate starts at the first answer
        if now - self._logged_at < (0.5 if self._in_place else _LOG_SECONDS) and not is_last:
            return
        self._logged_at = now
        self._marks.append((now, answered))
        while len(self._marks) > 2 and now - self._marks[0][0] > _RATE_SECONDS:
            self._marks.pop(0)
        (then, before), *_ = self._marks
        rate = (answered - before) / max(now - then, 1e-9)
        is_up = rate and not snapshot.outage
        left = max(0, self._calls - answered) / rate if is_up else None
        line = f"{self._name}: {self._describe(snapshot, rate, left)}"
        if self._in_place:
            print(f"\r\033[K{line}", end="\n" if is_last else "", file=sys.stderr, flush=True)
            return
        totals = snapshot.totals
        figures = {
            "answered": totals.answered,
            "failed": totals.failed,
            "of": self._calls,
            "answers_per_second": round(rate, 1),
            "eta_seconds": None if left is None else round(left),
            "cost_usd": round(totals.cost_usd, 6) if self._has_price or totals.cost_usd else None,
            "throttled": totals.throttled,
            "retries": totals.retries,
            "in_flight": snapshot.in_flight,
            "pause_seconds": round(snapshot.pause_seconds, 1),
            "outage": snapshot.outage or None,
            "quota_wait": snapshot.quota_wait or None,
            "storage_error": snapshot.storage_error,
        }
        log.info(line, extra={"figures": figures})

    def _describe(self, snapshot: Snapshot, rate: float, left: float | None) -> str:
        totals, (waiting, seconds, reason) = snapshot.totals, snapshot.resting
        parts = [
            f"{totals.answered:,} of {self._calls:,} answers",
            f"{totals.failed:,} failed" if totals.failed else "",
            f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s",
            f"{format_seconds(left)} left" if left is not None else "",
            self._describe_cost(totals),
            f"429s: {totals.throttled}" if totals.throttled else "",
            f"retries: {totals.retries}" if totals.retries else "",
            f"paused for {snapshot.pause_seconds:.0f} s" if snapshot.pause_seconds >= 1 else "",
            f"{waiting} calls wait up to {seconds:.0f} s ({reason})" if seconds >= 5 else "",
            snapshot.outage,
            snapshot.quota_wait,
            snapshot.note,
            snapshot.storage_error or "",
        ]
        return ", ".join(part for part in parts if part)

    def _describe_cost(self, totals: Totals) -> str:
        """The dollars so far, and in all if the rest costs as much; empty if they are unknown."""
        if not (self._has_price or totals.cost_usd):
            return ""
        so_far, share = f"${totals.cost_usd:.4f}", totals.answered / max(self._calls, 1)
        if not (totals.cost_usd and _FORETELLING_SHARE <= share < 1):
            return so_far
        return f"{so_far} of about ${totals.cost_usd / share:.2g}"


def format_seconds(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def summarize_calls(snapshot: Snapshot, concurrency: int, has_price: bool) -> LabelSummary:
    """The calls' figures, and the minimum time for them; without bursts, which are unknown."""
    totals = snapshot.totals
    tokens = totals.prompt_tokens + totals.completion_tokens
    best = optimum_seconds(
        totals.answered,
        tokens,
        snapshot.requests_per_minute,
        snapshot.tokens_per_minute,
        totals.call_seconds / max(totals.calls, 1),
        concurrency,
    )
    summary: LabelSummary = {
        "calls": totals.calls,
        "retries": totals.retries,
        "throttled": totals.throttled,
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "cost_usd": round(totals.cost_usd, 6) if has_price else None,
        "call_seconds": round(snapshot.active_seconds, 1),
        "optimum_seconds": round(best, 1),
        "efficiency": round(min(1.0, best / max(snapshot.active_seconds, 1e-9)), 3),
    }
    if totals.reasoning_tokens:
        summary["reasoning_tokens"] = totals.reasoning_tokens
    if snapshot.adaptations:
        summary["adaptations"] = describe(snapshot.adaptations)
    return summary
