"""What a run has paid for: the journal's replies and their cost."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from common.labels.crash_record import CrashedSession, forget_crashed, list_crashed
from common.labels.label_row import make_label
from common.records import Example, LabelRow
from common.run.run import Run
from common.run.storage import RunStorage
from common.settings import Settings
from common.teacher.costs import find_cost
from common.teacher.journal import iterate_journal, write_lost
from common.teacher.replies import Answer, Reply, read_answer
from common.teacher.requests import bound_prompt_tokens, make_key, make_request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What the journal holds.

    `rows`, by id, have all samples; `replies`, by key, are of examples with missing samples;
    `cost_usd` is the sum over all calls of the run, 0 if nothing is known of their price.
    """

    rows: dict[str, LabelRow]
    replies: dict[str, Reply]
    cost_usd: float

    @property
    def has_answer(self) -> bool:
        """Whether the teacher has answered such a request."""
        return bool(self.replies) or any(row.samples for row in self.rows.values())


def read_known(run: Run, examples: Sequence[Example]) -> Known:
    """Labels the examples whose replies are in the journal; unusable replies do not count."""
    journal, cost_usd = _read_paid(run)
    present = run.settings.teacher.max_tokens
    limits = {reply.max_tokens for reply in journal.values()} - {0, present}
    rows: dict[str, LabelRow] = {}
    replies: dict[str, Reply] = {}
    for example in examples if journal else []:
        found = _find(journal, limits, run, example)
        if len(found) == run.settings.label.samples:
            rows[example.id] = make_label(example, list(found.values()), run.task)
        else:
            replies |= found
    return Known(rows, replies, cost_usd)


def _find(
    journal: dict[str, Reply], limits: set[int], run: Run, example: Example
) -> dict[str, Reply]:
    """An example's replies by key, also those that were asked for with other limits of the length.

    A whole response is the same under any limit.
    """
    body = make_request(run.settings.teacher, run.task, example.text)
    found = {}
    for sample, key in enumerate(make_keys(run.settings, body)):
        others = (make_key(run.settings.teacher, body | {"max_tokens": n}, sample) for n in limits)
        places = [key] if key in journal else [other for other in others if other in journal]
        if places:
            found[key] = journal[places[0]]
    return found


def resume(run: Run, examples: Sequence[Example]) -> Known:
    """Reads the journal, after charging the lost calls of crashed sessions."""
    known = read_known(run, examples)
    crashed = list_crashed(run.storage)
    if not crashed:
        return known
    missing = [e for e in examples if e.id not in known.rows and e.text.strip()]
    lost = sum(_charge(run, session, missing, missing or examples) for session in crashed)
    _, cost_usd = _read_paid(run)
    dollars = f", ${cost_usd - known.cost_usd:.4f} at most" if cost_usd else ""
    if lost:
        log.warning(
            "an earlier job has crashed: up to %d calls may be paid for and lost%s", lost, dollars
        )
    forget_crashed(run.storage, crashed)
    return replace(known, cost_usd=cost_usd)


def _charge(
    run: Run, session: CrashedSession, missing: Sequence[Example], asked: Sequence[Example]
) -> int:
    """Charges a crashed session's calls, as the largest without a reply; returns their number."""
    bodies = [make_request(run.settings.teacher, run.task, e.text) for e in asked]
    sizes = sorted(map(bound_prompt_tokens, bodies), reverse=True)
    samples, name = run.settings.label.samples, session.name
    in_flight = [tokens for tokens in sizes[: len(missing)] for _ in range(samples)]
    lost = in_flight[: session.in_flight] + sizes[:1] * session.lost
    reason = f"lost: job {name} was killed"
    replies = [Reply(f"{i} of {name}", 0, reason, 0, 0.0, n) for i, n in enumerate(lost)]
    if replies:
        write_lost(run.storage, name, replies)
    return len(lost)


def read_answered(storage: RunStorage, max_tokens: int) -> dict[str, Reply]:
    """The journal's usable replies, by key; `max_tokens` is the limit of a response's length."""
    return _choose(((reply, read_answer(reply)) for reply in iterate_journal(storage)), max_tokens)


def _read_paid(run: Run) -> tuple[dict[str, Reply], float]:
    """The journal's usable replies by key, and the dollars for all replies, 0 if nobody tells them.

    A reply without usage counts with its maximum cost.
    """
    price, max_tokens = run.price, run.settings.teacher.max_tokens
    cost_usd = 0.0
    counted: set[int] = set()

    def iterate() -> Iterator[tuple[Reply, Answer]]:
        nonlocal cost_usd
        for reply in iterate_journal(run.storage):
            answer = read_answer(reply)
            identity = hash(reply)
            if identity not in counted:  # the journal may have duplicates
                counted.add(identity)
                cost_usd += find_cost(price, reply, answer, reply.max_tokens or max_tokens)
            yield reply, answer

    replies = _choose(iterate(), max_tokens)
    return replies, cost_usd


def _choose(pairs: Iterable[tuple[Reply, Answer]], max_tokens: int) -> dict[str, Reply]:
    """The usable replies by key; a finished answer is preferred to an unfinished one.

    One that was cut off at a lower limit than the present one is asked for again.
    """
    chosen: dict[str, Reply] = {}
    for reply, answer in pairs:
        if answer.error == "length" and 0 < reply.max_tokens < max_tokens:
            continue
        if answer.is_final and (reply.key not in chosen or answer.error is None):
            chosen[reply.key] = reply
    return chosen


def make_keys(settings: Settings, body: dict[str, object]) -> list[str]:
    """The keys of all samples for one request."""
    return [make_key(settings.teacher, body, i) for i in range(settings.label.samples)]
