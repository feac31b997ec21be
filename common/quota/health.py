"""Decides who is at fault when calls fail: their rows, the job, or a teacher that is down."""

from common.errors import DistillError
from common.quota.protocol import Blame, Fault, Refusal

_ALIKE = 20
"""Without any answer, the job stops after so many refused rows."""
_FAILING_ROWS = 5
"""It is an outage if calls of so many rows fail and none is answered."""
_PROBE_SECONDS = 0.5, 15.0
"""The shortest and the longest time between two probes in an outage."""


class Health:
    """The teacher's health, as the results of calls show it. Times are seconds."""

    def __init__(
        self,
        has_succeeded: bool = False,
        startup_seconds: float = 120.0,
        outage_seconds: float = 900.0,
    ) -> None:
        """`has_succeeded` says that an earlier session got answers to such requests."""
        self._has_succeeded, self._has_answered = has_succeeded, False
        self._startup_seconds, self._outage_seconds = startup_seconds, outage_seconds
        self._alike, self._alike_rows = "", 0
        self._refused = self._refused_rows = 0
        self._suspicion: DistillError | None = None
        self._failing_rows = self._probes = 0
        self._probe_at = 0.0
        self._down_since: float | None = None
        self._throttled_since: float | None = None
        self._message = ""
        self.failure: DistillError | None = None

    @property
    def has_outcome(self) -> bool:
        """Whether a row has ended in this session, with an answer or a refusal."""
        return self._has_answered or self._refused > 0

    @property
    def is_outage(self) -> bool:
        """Whether the teacher is down: one call at a time probes it."""
        return self._down_since is not None

    @property
    def suspicion(self) -> DistillError | None:
        """What the job ends with if no row is answered."""
        return None if self._has_answered or self._has_succeeded else self._suspicion

    def limit_window(self, window: int) -> int:
        """The calls in flight that are worth their risk, at most `window`."""
        if self.is_outage:
            return 1
        if self._refused and not (self._has_answered or self._has_succeeded):
            return max(1, min(window, self._refused_rows, _ALIKE - self._refused_rows))
        return window

    def describe_outage(self, now: float) -> str:
        """The outage's reason and length; empty if there is none."""
        if self._down_since is None:
            return ""
        return f"the teacher is down for {now - self._down_since:.0f} s ({self._message})"

    def answer(self) -> None:
        """A call was answered."""
        self._has_answered = True
        self._alike_rows = self._refused_rows = self._failing_rows = self._probes = 0
        self._down_since = self._throttled_since = None

    def refuse(self, refusal: Refusal) -> None:
        """A row was refused for good."""
        self._refused += 1
        self._refused_rows += 1
        self._alike_rows = self._alike_rows + 1 if refusal.alike == self._alike else 1
        self._alike = refusal.alike
        if refusal.blame is not Blame.ROW:
            self._suspicion = refusal.error
        if refusal.blame is Blame.CERTAIN or self._is_enough(refusal):
            self.failure = self.failure or refusal.error

    def _is_enough(self, refusal: Refusal) -> bool:
        """Whether the refusals in a row stop the job."""
        if self._has_answered or self._has_succeeded:
            return refusal.blame is not Blame.ROW and self._alike_rows >= refusal.patience
        return refusal.blame is Blame.JOB or self._refused_rows >= _ALIKE

    def fault(self, fault: Fault, now: float) -> float:
        """A call has failed; returns the seconds until the next probe, 0 without an outage."""
        if fault.is_of_row and not self.is_outage:
            return 0.0
        has_worked = self._has_answered
        self._failing_rows += fault.is_new and (has_worked or fault.is_outage)
        is_starting = not has_worked and not self._refused and fault.is_outage
        if self._down_since is None and (is_starting or self._failing_rows >= _FAILING_ROWS):
            self._down_since = now
        if self._down_since is None:
            return 0.0
        self._message = fault.message
        longest = self._outage_seconds if self._has_answered else self._startup_seconds
        if now - self._down_since >= longest:
            name = "OUTAGE" if self._has_answered else "STARTUP"
            self.failure = self.failure or DistillError(
                f"the teacher has given no answer for {now - self._down_since:.0f} s "
                f"({fault.message}); run again when it works, or raise "
                f"DISTILL_TEACHER__{name}_SECONDS={longest:g}"
            )
        if now >= self._probe_at:  # else it is one of those that were in flight
            first, most = _PROBE_SECONDS
            self._probe_at = now + min(most, first * 2**self._probes)
            self._probes += 1
        return self._probe_at - now

    def throttle(self, now: float) -> None:
        """A call was throttled."""
        self._throttled_since = now if self._throttled_since is None else self._throttled_since
        if (seconds := now - self._throttled_since) > self._outage_seconds:
            self.failure = self.failure or DistillError(
                f"the teacher has only answered with 429 for {seconds:.0f} s; run again later, or "
                f"raise DISTILL_TEACHER__OUTAGE_SECONDS={self._outage_seconds:g}"
            )

    def keep_waiting(self, seconds: float, said: str) -> None:
        """No call may start for so long, by what is `said` in the teacher's headers."""
        if seconds > self._outage_seconds:
            self.failure = self.failure or DistillError(
                f"the teacher's quota is used up for {seconds:,.0f} s: its headers say that {said};"
                " run again then, or raise DISTILL_TEACHER__OUTAGE_SECONDS="
                f"{self._outage_seconds:g}"
            )
