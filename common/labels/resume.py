"""What a run has paid for: the replies in the journal and the sealed ones, and their cost."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.examples import Examples, pack_ids
from common.labels.crash_record import CrashedSession, forget_crashed, list_crashed
from common.labels.label_row import Outcome, make_label
from common.records import Example
from common.run.run import Run
from common.settings import Settings
from common.teacher.journal import iterate_journal, write_lost
from common.teacher.replies import Answer, Reply, read_answer
from common.teacher.requests import bound_prompts, make_key, make_request
from common.teacher.sealed import Sealed, list_sealed, sum_cost

_GROUP = 10_000
Keep = Callable[[Outcome], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What is left to ask.

    Attributes:
        missing: the examples that lack samples.
        replies: by key, those that `missing` have.
        cost_usd: the sum over all calls of the run, 0 if nothing is known of their price.
        has_answer: whether the teacher has answered such a request.
    """

    missing: Examples
    replies: Mapping[str, Reply]
    cost_usd: float
    has_answer: bool = False


def resume(
    run: Run, examples: Examples, keep: Keep, done: NDArray[np.bool_] | None = None
) -> Known:
    """As `read_known`, and charges the lost calls of crashed sessions."""
    crashed = list_crashed(run.storage)
    known = read_known(run, examples, keep, done, {session.name for session in crashed})
    if not crashed:
        return known
    asked = known.missing if len(known.missing) else examples
    lost = [reply for session in crashed for reply in _charge(run, session, known.missing, asked)]
    lost_usd = sum_cost(lost, run.price, run.settings.teacher.max_tokens)
    if lost:
        log.warning(
            "an earlier job has crashed: up to %d calls may be paid for and lost%s",
            *(len(lost), f", ${lost_usd:.4f} at most" if lost_usd else ""),
        )
    forget_crashed(run.storage, crashed)
    return replace(known, cost_usd=known.cost_usd + lost_usd)


def _charge(
    run: Run, session: CrashedSession, missing: Examples, asked: Examples
) -> Sequence[Reply]:
    """Charges a crashed session's calls, as the largest without a reply."""
    settings, name = run.settings, session.name
    sizes = np.sort(bound_prompts(settings.teacher, run.task, asked.sizes))[::-1]
    in_flight = np.repeat(sizes[: len(missing)], settings.label.samples)
    lost = [*in_flight[: session.in_flight].tolist(), *sizes[:1].tolist() * session.lost]
    reason = f"lost: job {name} was killed"
    replies = [Reply(f"{i} of {name}", 0, reason, 0, 0.0, n) for i, n in enumerate(lost)]
    if replies:
        write_lost(run.storage, name, replies)
    return replies


def read_known(
    run: Run,
    examples: Examples,
    keep: Keep,
    done: NDArray[np.bool_] | None = None,
    uncharged: Iterable[str] = (),
) -> Known:
    """Labels the examples whose replies are paid for, other than those that are `done`.

    `keep` takes their rows, with the replies that are not sealed yet. Unusable replies do not
    count. The lost calls of `uncharged` sessions cost nothing yet.
    """
    reader = _Reader(run, examples, keep, np.zeros(len(examples), bool) if done is None else done)
    reader.read_journal(set(uncharged))  # first: a worker that outlives its job may seal from it
    reader.read_sealed()
    reader.label_others()
    missing = examples.select(~reader.done)
    return Known(missing, reader.replies, reader.cost_usd, reader.has_answer)


class _Reader:
    def __init__(self, run: Run, examples: Examples, keep: Keep, done: NDArray[np.bool_]) -> None:
        self.replies: dict[str, Reply] = {}
        self.cost_usd = 0.0
        self.has_answer = False
        self.done = done.copy()
        self._run, self._examples, self._keep = run, examples, keep
        self._max_tokens = run.settings.teacher.max_tokens
        self._journal: dict[str, list[Reply]] = {}
        """By example."""
        self._sealed: dict[str, list[Reply]] = {}
        """Of examples with samples that are not sealed in the same file."""
        self._texts: dict[str, Example] = {}
        self._by_key: dict[str, Reply] = {}
        """Usable ones that name no example."""
        self._limits: set[int] = set()
        """Their limits of the length."""

    def read_journal(self, uncharged: set[str]) -> None:
        counted: set[int] = set()  # the journal may have duplicates
        replies = iterate_journal(self._run.storage)
        while group := list(islice(replies, _GROUP)):
            group = [r for r in group if r.key.rpartition(" of ")[2] not in uncharged]
            new = {hash(r): r for r in group if hash(r) not in counted}
            counted |= new.keys()
            self.cost_usd += self._sum_cost(new.values())
            with_id = [r for r in new.values() if r.example_id]
            places = self._examples.find(pack_ids([r.example_id for r in with_id]))
            for reply, place in zip(with_id, places, strict=True):
                if place >= 0:
                    self._journal.setdefault(reply.example_id, []).append(reply)
            others = (r for r in new.values() if not r.example_id)
            _choose(((r, read_answer(r)) for r in others), self._max_tokens, self._by_key)
        self._limits = {reply.max_tokens for reply in self._by_key.values()}

    def _sum_cost(self, replies: Iterable[Reply]) -> float:
        return sum_cost(replies, self._run.price, self._max_tokens)

    def read_sealed(self) -> None:
        in_journal = pack_ids(self._journal)
        for file in list_sealed(self._run.storage):
            self.cost_usd += file.find_cost(self._run.price, self._max_tokens)
            places = self._examples.find(file.ids)
            is_missing = (places >= 0) & ~self.done[places] if len(self.done) else places >= 0
            for row in file.read(is_missing | np.isin(file.ids, in_journal)):
                self._drop_copies(row)
                self._settle(row)

    def _drop_copies(self, row: Sealed) -> None:
        """Forgets the journal's replies that are sealed: their job was killed in between."""
        found = self._journal.get(row.example.id, [])
        copies = [reply for reply in found if reply in row.replies]
        self.cost_usd -= self._sum_cost(copies)
        if copies:
            self._journal[row.example.id] = [reply for reply in found if reply not in copies]

    def _settle(self, row: Sealed) -> None:
        id = row.example.id
        (place,) = self._examples.find(pack_ids([id]))
        if place >= 0 and not self.done[place]:
            self._sealed.setdefault(id, []).extend(row.replies)
            self._texts[id] = row.example
            self._label(row.example, place)

    def _label(self, example: Example, place: np.intp) -> Mapping[str, Reply]:
        """Makes the row if all samples are there, else returns those that are."""
        replies = [*self._sealed.get(example.id, []), *self._journal.get(example.id, [])]
        chosen = _choose(((r, read_answer(r)) for r in replies), self._max_tokens, {})
        limits = self._limits | {reply.max_tokens for reply in chosen.values()}
        limits -= {0, self._max_tokens}
        found = _find(self._run, example, chosen, self._by_key, limits=limits)
        self.has_answer |= bool(found)
        if len(found) < self._run.settings.label.samples:
            return found
        row = make_label(example, list(found.values()), self._run.task)
        self._keep(Outcome(row, self._journal.pop(example.id, [])))
        self.done[place] = True
        self._sealed.pop(example.id, None)
        self._texts.pop(example.id, None)
        return {}

    def label_others(self) -> None:
        """Labels the examples that are not in one sealed file."""
        candidates = ~self.done
        if not self._by_key:
            candidates[:] = False
            named = self._examples.find(pack_ids([*self._journal, *self._texts]))
            candidates[named] = ~self.done[named]
        if candidates.any():
            for group in self._examples.select(candidates).read():
                places = self._examples.find(pack_ids([example.id for example in group]))
                for example, place in zip(group, places, strict=True):
                    self.replies |= self._label(example, place)


def _find(
    run: Run, example: Example, *sources: Mapping[str, Reply], limits: Iterable[int]
) -> dict[str, Reply]:
    """An example's replies by key, also those that were asked for with other limits of the length.

    A whole response is the same under any limit.
    """
    settings, found = run.settings, {}
    if not any(sources):
        return {}
    body = make_request(settings.teacher, run.task, example.text)
    for sample, key in enumerate(make_keys(settings, body)):
        others = (make_key(settings.teacher, body | {"max_tokens": n}, sample) for n in limits)
        for name in chain([key], others):
            reply = next((source[name] for source in sources if name in source), None)
            if reply is not None:
                found[key] = reply
                break
    return found


def _choose(
    pairs: Iterable[tuple[Reply, Answer]], max_tokens: int, chosen: dict[str, Reply]
) -> dict[str, Reply]:
    """Adds the usable replies by key; a finished answer is preferred to an unfinished one.

    One that was cut off at a lower limit than the present one is asked for again.
    """
    for reply, answer in pairs:
        if answer.error == "length" and 0 < reply.max_tokens < max_tokens:
            continue
        if answer.is_final and (reply.key not in chosen or answer.error is None):
            chosen[reply.key] = reply
    return chosen


def make_keys(settings: Settings, body: dict[str, Any]) -> list[str]:
    """The keys of all samples for one request."""
    return [make_key(settings.teacher, body, i) for i in range(settings.label.samples)]
