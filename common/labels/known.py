"""What a run has paid for: the journal's replies, parsed again, and all of their cost."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from common.labels.outcome import make_label
from common.prices.prices import find_price
from common.records import Example, LabelRow
from common.run.lock import RunLock
from common.run.storage import RunStorage
from common.settings import Settings
from common.tasks.model import Task
from common.teacher.journal import iterate_journal, write_lost
from common.teacher.replies import Answer, Reply, read_answer
from common.teacher.requests import bound_prompt_tokens, make_key, make_request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What the journal holds already, parsed again, at no cost.

    `rows` are by id, complete; `replies`, by key, are of examples whose other samples are missing;
    `cost_usd` was paid for all of the run's calls together, where the price is known.
    """

    rows: dict[str, LabelRow]
    replies: dict[str, Reply]
    cost_usd: float


def label_known(
    settings: Settings, task: Task, storage: RunStorage, examples: Sequence[Example]
) -> Known:
    """Labels what the journal has replies for.

    A reply that cannot be parsed does not count, nor a refusal, which costs nothing to ask for
    again.
    """
    journal, cost_usd = _read_paid(settings, storage)
    rows: dict[str, LabelRow] = {}
    replies: dict[str, Reply] = {}
    for example in examples if journal else []:
        keys = make_keys(settings, make_request(settings.teacher, task, example.text))
        found = {key: journal[key] for key in keys if key in journal}
        if len(found) == len(keys):
            rows[example.id] = make_label(example, list(found.values()), task)
        else:
            replies |= found
    return Known(rows, replies, cost_usd)


def resume(
    settings: Settings,
    task: Task,
    storage: RunStorage,
    examples: Sequence[Example],
    lock: RunLock,
) -> Known:
    """Labels what the journal has replies for; a killed job's lost calls count as paid from now on.

    They are taken for the dearest of those that the journal has no reply for.
    """
    known = label_known(settings, task, storage, examples)
    if not lock.inherited:
        return known
    missing = [e for e in examples if e.id not in known.rows and e.text.strip()]
    bodies = [make_request(settings.teacher, task, e.text) for e in missing or examples]
    dearest = sorted(map(bound_prompt_tokens, bodies), reverse=True)
    remains, samples = lock.inherited, settings.label.samples
    in_flight = [tokens for tokens in dearest[: len(missing)] for _ in range(samples)]
    lost = in_flight[: remains.in_flight] + dearest[:1] * remains.lost
    if lost:
        reason = f"lost: job {remains.owner} was killed"
        write_lost(
            storage,
            remains.owner,
            [Reply(f"{i} of {remains.owner}", 0, reason, 0, 0.0, n) for i, n in enumerate(lost)],
        )
        _, cost_usd = _read_paid(settings, storage)
        log.warning(
            "the job before was killed: up to %d calls may be paid for and lost%s",
            len(lost),
            f", ${cost_usd - known.cost_usd:.4f} at most" if cost_usd else "",
        )
        known = replace(known, cost_usd=cost_usd)
    lock.risk(0)
    return known


def read_answered(storage: RunStorage) -> dict[str, Reply]:
    """The journal's usable replies, by key."""
    pairs = ((reply, read_answer(reply)) for reply in iterate_journal(storage))
    return _choose(pairs)


def _read_paid(settings: Settings, storage: RunStorage) -> tuple[dict[str, Reply], float]:
    """The journal's usable replies by key, and the dollars that all of them cost together.

    What does not tell its usage counts with the most that it may have cost. Where the price is
    unknown, dollars are 0.
    """
    price = find_price(settings.teacher)
    cost_usd = 0.0
    counted: set[int] = set()

    def iterate() -> Iterator[tuple[Reply, Answer]]:
        nonlocal cost_usd
        for reply in iterate_journal(storage):
            answer = read_answer(reply)
            identity = hash(reply)
            if price and identity not in counted:  # a reply may come twice
                counted.add(identity)
                cost_usd += (
                    price.cost(answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens)
                    if answer.prompt_tokens
                    else price.worst_cost(reply.most_prompt_tokens, settings.teacher.max_tokens)
                )
            yield reply, answer

    replies = _choose(iterate())
    return replies, cost_usd


def _choose(pairs: Iterable[tuple[Reply, Answer]]) -> dict[str, Reply]:
    """The usable replies by key: a whole answer rather than an unfinished one."""
    chosen: dict[str, Reply] = {}
    for reply, answer in pairs:
        is_usable = reply.http_status == 200 and answer.error != "bad_response"
        if is_usable and (reply.key not in chosen or answer.error is None):
            chosen[reply.key] = reply
    return chosen


def make_keys(settings: Settings, body: dict[str, object]) -> list[str]:
    """The keys of all samples for one request."""
    return [make_key(settings.teacher, body, i) for i in range(settings.label.samples)]
