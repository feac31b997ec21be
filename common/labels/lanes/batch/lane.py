"""The lane of batches: files of requests that the teacher answers within a day, at half the price.

A kill at any moment neither submits a chunk twice nor loses a result: a batch whose id was lost is
found by its chunk's name in the API's listing.
"""

import math
import re
import threading
import time
import uuid
from collections import deque
from dataclasses import replace
from typing import Any

import pyarrow as pa

from common.errors import CostCapError, DistillError
from common.labels.label_row import make_label
from common.labels.lane import Lane, Work
from common.labels.lanes.batch.chunks import Chunk, Chunks
from common.labels.resume import make_keys
from common.prices.prices import BATCH
from common.quota.protocol import Snapshot, Totals
from common.records import Example, make_label_table
from common.teacher.batches import Batch, BatchApi, Result
from common.teacher.costs import find_cost
from common.teacher.dialect import REFUSED_PARAMETER, Adaptations, adapt, learn
from common.teacher.journal import write_batch
from common.teacher.replies import Answer, Reply, read_answer
from common.teacher.requests import bound_prompt_tokens, make_request
from common.teacher.statuses import Action, match_rule

_POLL_SECONDS = 1.0, 30.0
_POLL_GROWTH = 1.3
_MEGABYTE = 10**6
_FULL = re.compile(r"token.?limit|enqueued|too many|limit reached|quota.?exceeded", re.IGNORECASE)
"""A batch fails with that if more would be queued than the provider allows."""
_UNANSWERED = "timeout: the batch ended before"


class BatchLane(Lane):
    """All rows arrive at once, when the last batch has ended."""

    loses_calls = False

    def open(self) -> None:
        self._stopped = threading.Event()
        self._guard = threading.Lock()
        self._totals, self._adaptations = Totals(), frozenset[str]()
        self._chunks: list[Chunk] = []

    def start(self, work: Work) -> None:
        self._work, run = work, work.run
        self._settings, self._price = run.settings, run.price
        self._storage = Chunks(run.storage)
        self._api = BatchApi(run.settings.teacher, work.url)
        self._replies: dict[str, Reply] = dict(work.replies)
        self._examples = [example for group in work.examples.read() for example in group]
        self._bodies: dict[str, dict[str, Any]] = {}
        self._owners: dict[str, str] = {}
        self._list_requests()
        self._attempts: dict[str, int] = {}
        self._spent_usd = work.spent_usd
        self._most_at_work, self._most_requests = math.inf, self._settings.label.batch_requests
        self.deliver(lambda: [self._label()])

    def _list_requests(self) -> None:
        teacher, task = self._settings.teacher, self._work.run.task
        for example in self._examples:
            body = make_request(teacher, task, example.text)
            for key in make_keys(self._settings, body):
                if key not in self._replies:
                    self._bodies[key], self._owners[key] = body, example.id

    def _label(self) -> pa.Table:
        """Runs batches until every request has a reply; then makes the rows."""
        try:
            self._adopt()
            waiting = deque(self._list_unsubmitted())
            while waiting or self._chunks:
                while waiting and self._has_room() and self._submit(waiting):
                    self._check_stop()
                if not self._chunks:
                    self._explain_cap()
                waiting += self._wait()
        finally:
            self._api.close()
        task = self._work.run.task
        rows = [make_label(e, self._find_replies(e), task) for e in self._examples]
        return make_label_table(rows)

    def _find_replies(self, example: Example) -> list[Reply]:
        body = make_request(self._settings.teacher, self._work.run.task, example.text)
        return [self._replies[key] for key in make_keys(self._settings, body)]

    def _adopt(self) -> None:
        """Takes over the chunks of an earlier job."""
        for chunk in self._storage.read():
            if chunk.id is None:
                chunk.id = self._api.find(chunk.name)
                if chunk.id is None:  # it was never created
                    self._storage.remove(chunk)
                    continue
                self._storage.write(chunk)
            self._chunks.append(chunk)

    def _list_unsubmitted(self) -> list[str]:
        submitted = {key for chunk in self._chunks for key in chunk.keys}
        return [key for key in self._bodies if key not in submitted]

    def _has_room(self) -> bool:
        return len(self._chunks) < self._most_at_work

    def _submit(self, waiting: deque[str]) -> bool:
        """Submits the next chunk; whether the cost cap allows one."""
        label = self._settings.label
        most_bytes = label.batch_megabytes * _MEGABYTE
        requests: dict[str, dict[str, Any]] = {}
        size, worst_usd = 0, 0.0
        while waiting and len(requests) < self._most_requests:
            body = adapt(self._bodies[waiting[0]], self._adaptations)
            line, usd = len(self._api.encode({waiting[0]: body})), self._bound_cost(body)
            if requests and size + line > most_bytes:
                break
            if not self._allows(worst_usd + usd):
                break
            requests[waiting.popleft()] = body
            size, worst_usd = size + line, worst_usd + usd
        if not requests:
            return False
        name, adaptations = uuid.uuid4().hex[:16], sorted(self._adaptations)
        chunk = Chunk(name, list(requests), worst_usd, adaptations, is_alone=not self._chunks)
        self._storage.write(chunk)
        try:
            chunk.id = self._api.submit(chunk.name, self._api.encode(requests))
        except DistillError:
            if self._api.find(chunk.name) is None:
                self._storage.remove(chunk)
            raise
        self._storage.write(chunk)
        with self._guard:
            self._chunks.append(chunk)
            self._totals.calls += len(requests)
        return True

    def _bound_cost(self, body: dict[str, Any]) -> float:
        if self._price is None or self._settings.label.max_cost_usd is None:
            return 0.0
        limit = self._settings.teacher.max_tokens
        return self._price.worst_cost(bound_prompt_tokens(body), limit, BATCH)

    def _allows(self, worst_usd: float) -> bool:
        cap = self._settings.label.max_cost_usd
        reserved = sum(chunk.worst_usd for chunk in self._chunks)
        return cap is None or self._spent_usd + reserved + worst_usd <= cap

    def _explain_cap(self) -> None:
        raise CostCapError(
            f"DISTILL_LABEL__MAX_COST_USD={self._settings.label.max_cost_usd:g} is reached: "
            f"${self._spent_usd:.4f} are spent; raise it and run again to resume"
        )

    def _wait(self) -> list[str]:
        """Waits until a batch has ended; returns the keys to ask for again.

        Raises a DistillError after `label.batch_wait_seconds`.
        """
        wait, longest = _POLL_SECONDS
        deadline = time.monotonic() + self._settings.label.batch_wait_seconds
        while True:
            for chunk in list(self._chunks):
                assert chunk.id is not None
                batch = self._api.get(chunk.id)
                chunk.counts = batch.counts
                if batch.has_ended:
                    return self._collect(chunk, batch)
            if time.monotonic() >= deadline:
                raise DistillError(
                    f"{len(self._chunks)} batches are at work ({self._describe()}); run again "
                    "later: what is answered then is collected"
                )
            self._check_stop(wait)
            wait = min(longest, wait * _POLL_GROWTH)

    def _check_stop(self, seconds: float = 0.0) -> None:
        if self._stopped.wait(seconds):
            raise DistillError("the job is stopping; its batches go on, run again to collect them")

    def _collect(self, chunk: Chunk, batch: Batch) -> list[str]:
        """Journals a batch's replies; returns the keys to ask for again."""
        if batch.status == "failed" and not batch.files:
            self._forget(chunk)
            self._give_way(chunk, batch)
            return [key for key in chunk.keys if key in self._bodies]
        results = {result.key: result for result in self._api.read_results(batch)}
        replies = [self._make_reply(chunk, key, results.get(key)) for key in chunk.keys]
        answered = [reply for reply in replies if reply.http_status == 200]
        write_batch(self._work.run.storage, chunk.name, answered)
        sent_with = frozenset(chunk.adaptations)
        again = [reply.key for reply in replies if not self._settle(reply, sent_with)]
        self._forget(chunk)
        return again

    def _give_way(self, chunk: Chunk, batch: Batch) -> None:
        """Has fewer batches at work if the provider's queue is full, or smaller ones.

        Raises a DistillError if the batch has failed for another reason, or cannot be smaller.
        """
        if not _FULL.search(batch.error) or (chunk.is_alone and len(chunk.keys) == 1):
            raise DistillError(f"the teacher refuses the batch {batch.id}: {batch.error}")
        with self._guard:
            self._totals.calls -= len(chunk.keys)
        self._most_at_work = max(1, len(self._chunks))
        if chunk.is_alone:
            self._most_requests = max(1, len(chunk.keys) // 2)

    def _forget(self, chunk: Chunk) -> None:
        self._storage.remove(chunk)
        with self._guard:
            self._chunks.remove(chunk)

    def _make_reply(self, chunk: Chunk, key: str, result: Result | None) -> Reply:
        age, limit = time.time() - chunk.created_at, self._settings.teacher.max_tokens
        body = self._bodies.get(key)
        tokens = bound_prompt_tokens(body) if body else 0
        status, text = (result.status, result.body) if result else (0, "")
        text = text if status else f"{_UNANSWERED} this request ({text})"
        attempts = self._attempts[key] = self._attempts.get(key, 0) + 1
        owner = self._owners.get(key, "")
        return Reply(key, status, text, attempts, age, tokens, limit, None, BATCH, owner)

    def _settle(self, reply: Reply, sent_with: Adaptations) -> bool:
        """Counts a reply; whether it ends its sample, rather than being asked for again."""
        answer = read_answer(reply)
        with self._guard:
            self._count_cost(reply, answer)
            body = self._bodies.get(reply.key)
            if body is None:  # of other settings: it is paid, and journaled
                return True
            if not answer.is_final and self._goes_again(reply, answer, body, sent_with):
                return False
            self._replies[reply.key] = reply
            self._totals.answered += answer.is_final
            self._totals.failed += not answer.is_final
        return True

    def _count_cost(self, reply: Reply, answer: Answer) -> None:
        if reply.http_status != 200:
            return
        cost = find_cost(self._price, reply, answer, self._settings.teacher.max_tokens)
        self._spent_usd += cost
        self._totals.cost_usd += cost
        if usage := answer.usage:
            self._totals.prompt_tokens += usage.prompt_tokens
            self._totals.completion_tokens += usage.completion_tokens
            self._totals.reasoning_tokens += usage.reasoning_tokens

    def _goes_again(
        self, reply: Reply, answer: Answer, body: dict[str, Any], sent_with: Adaptations
    ) -> bool:
        """Whether the request goes into another batch. Raises a SettingsError, see `learn`."""
        if self._settings.label.batch_rest == "online":
            return False  # not here: the label job asks for it
        teacher = self._settings.teacher
        self._adaptations |= learn(body, answer.status, answer.api_error, teacher, sent_with)
        if answer.status in REFUSED_PARAMETER and self._adaptations != sent_with:
            return True
        is_refused = match_rule(answer.status, answer.api_error).action is Action.FAIL
        return not is_refused and reply.attempts < teacher.max_attempts

    def snapshot(self, may_start: bool) -> Snapshot:
        del may_start
        with self._guard:
            snapshot = self._work.quota.snapshot()
            return replace(
                snapshot,
                totals=replace(self._totals),
                adaptations=self._adaptations,
                note=self._describe(),
            )

    def _describe(self) -> str:
        if not self._chunks:
            return ""
        done = sum(completed + failed for _, completed, failed in (c.counts for c in self._chunks))
        total = sum(len(chunk.keys) for chunk in self._chunks)
        age = time.time() - min(chunk.created_at for chunk in self._chunks)
        return f"{len(self._chunks)} batches, {done:,} of {total:,} done, {age / 60:.0f} min old"

    def stop(self, reason: DistillError) -> None:
        del reason
        self._stopped.set()

    def close(self) -> None:
        """The batches go on without this process."""
