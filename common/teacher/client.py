"""The teacher's client: sends requests, and retries, adapts or gives them up."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from common.errors import DistillError
from common.prices.prices import Price, require_price
from common.quota.calls import Call, Outcome
from common.quota.leases import Leases
from common.quota.protocol import Blame, Fault, Refusal, Totals
from common.sections import TeacherSettings
from common.teacher.connection import Connection, Response
from common.teacher.costs import bound_rates, find_cost, find_told_cost
from common.teacher.dialect import REFUSED_PARAMETER, Adaptations, adapt, is_explicit, learn
from common.teacher.replies import Answer, Reply, read_answer, split_reply
from common.teacher.requests import bound_prompt_tokens, count_characters, require_model
from common.teacher.statuses import ABOUT_TEXT, Action, Rule, make_refusal, match_rule

_BACKOFF_SECONDS = (0.5, 30.0)
T = TypeVar("T")


class Teacher:
    """One client of the API, with one connection pool. Use it in one event loop."""

    def __init__(
        self,
        settings: TeacherSettings,
        url: str,
        leases: Leases,
        price: Price | None = None,
        needs_cost: bool = False,
        keep: Callable[[Reply], Awaitable[None]] | None = None,
    ) -> None:
        """Connects to the API at `url`; `leases` decides when a call may start.

        `keep` makes each reply that may be paid for durable before it is parsed, including timeouts
        and lost connections. A call is in flight until `keep` returns: a crash loses at most
        `teacher.max_concurrency` replies. If it `needs_cost`, for a cap, and no `price` is known,
        each reply has to tell its cost.
        """
        require_model(settings)
        self._settings, self._leases, self._keep = settings, leases, keep
        self._path = "/chat/completions" if settings.endpoint == "chat" else "/completions"
        self._price, self._needs_cost = price, needs_cost and price is None
        self._connection = Connection(settings, url)

    async def close(self) -> None:
        """Closes the connections."""
        await self._leases.close()
        await self._connection.close()

    async def ask(self, body: dict[str, Any], keys: Sequence[str]) -> list[Reply]:
        """Asks for a sample per key, in one request where the teacher takes the parameter `n`.

        Raises:
            DistillError: the job stops: the teacher refuses every call, or the quota is over.
        """
        several = len(keys) > 1 and "n" not in self._leases.adaptations
        replies = await self._ask(body | {"n": len(keys)} if several else body, keys)
        if several and len(replies) == 1:
            self._leases.learn(frozenset({"n"}))  # it is refused or ignored
        if len(replies) == len(keys):
            return replies
        rest = [self.ask(body, [key]) for key in keys[len(replies) :]]
        return replies + [reply for found in await gather(rest) for reply in found]

    async def _ask(self, body: dict[str, Any], keys: Sequence[str]) -> list[Reply]:
        """Sends one request, as often as it takes; its choices belong to the keys in order."""
        row = _Row(bound_prompt_tokens(body), self._settings.max_tokens, body.get("n", 1))
        size = count_characters(body)
        while True:
            goes_first = row.calls > 0 and not self._leases.is_outage  # each probe with another row
            call = await self._leases.acquire(size, partial(self._bound_cost, row), goes_first)
            row.start(call)
            outcome = Outcome(Totals(calls=1, retries=int(row.calls > 1)), call.tokens)
            try:
                adaptations = self._leases.adaptations
                content = json.dumps(adapt(body, adaptations)).encode()
                response = await self._connection.post(self._path, content)
                outcome.totals.call_seconds = self._now() - call.sent_at
                reply = row.make_reply(keys[0], response, self._now())
                if response.status == 0 and self._price is None:
                    reply = replace(reply, cost_usd=self._bound_cost(row) or None)
                replies = split_reply(reply, keys)
                if response.may_be_paid and self._keep is not None:
                    await gather(map(self._keep, replies))
                answer = read_answer(reply)
                self._count(outcome, row, reply, answer, response)
                if self._learns(body, adaptations, answer):
                    continue
                is_over, wait = self._judge(row, outcome, answer, response)
                if is_over and outcome.totals.answered:
                    outcome.totals.answered = len(replies)
                elif is_over:
                    outcome.totals.failed = len(replies)
            except DistillError as error:
                self._leases.fail(error)
                raise
            finally:
                self._leases.settle(call, outcome)
            if is_over:
                return replies
            await self._leases.rest(wait, f"{answer.status or ''} {answer.message}".strip())

    def _learns(self, body: dict[str, Any], sent_with: Adaptations, answer: Answer) -> bool:
        """Whether the refused request goes again, in another form.

        Raises:
            SettingsError: the teacher refuses a setting of the user's own.
        """
        if answer.status not in REFUSED_PARAMETER:
            return False
        known = self._leases.adaptations
        is_text = match_rule(answer.status, answer.api_error).error in ABOUT_TEXT
        has_worked = sent_with == known and self._leases.answered > 0
        if is_text or (has_worked and not is_explicit(answer.api_error)):
            return False  # the message may quote the row's text
        new = learn(body, answer.status, answer.api_error, self._settings, sent_with) - known
        if new:
            self._leases.learn(new)
        return bool(new) or known != sent_with

    def _judge(
        self, row: "_Row", outcome: Outcome, answer: Answer, response: Response
    ) -> tuple[bool, float]:
        """Whether the row has ended, and else the seconds until its next call.

        Raises:
            DistillError: the job stops.
        """
        if answer.is_final:
            outcome.totals.answered = 1
            return True, 0.0
        rule = match_rule(answer.status, answer.api_error)
        wait, longest = find_wait(response, answer), self._settings.outage_seconds
        if wait is not None and wait > longest:
            return self._refuse_to_wait(rule, outcome, answer, wait)
        if rule.action is Action.THROTTLE:
            outcome.totals.throttled = 1
            outcome.is_throttled, outcome.retry_after_seconds = True, wait
            return row.waited(self._now()) > longest, 0.0
        if rule.action is Action.FAIL:
            outcome.refusal = make_refusal(
                rule, self._settings, self._path, answer.status, answer.api_error
            )
            if rule.blame is Blame.CERTAIN:
                raise outcome.refusal.error
            return True, 0.0
        message = f"{answer.status or ''} {answer.message or ''}".strip()
        outcome.fault = row.fault(message, rule.is_outage, self._leases.answered)
        if self._leases.is_outage and rule.is_outage:
            return False, 0.0  # the next call waits for the outage's end
        row.attempts += 1
        if row.attempts < self._settings.max_attempts:
            return False, _jitter(row.attempts) if wait is None else wait
        error = DistillError(
            f"the teacher at {self._settings.base_url} answers nothing ({message}); run again"
        )
        outcome.refusal = Refusal(error, Blame.ROW, message)
        return True, 0.0

    def _refuse_to_wait(
        self, rule: Rule, outcome: Outcome, answer: Answer, wait: float
    ) -> tuple[bool, float]:
        error = DistillError(
            f"the teacher at {self._settings.base_url} asks to wait {wait:.0f} s ({answer.status} "
            f"{answer.message}); run again then, or raise DISTILL_TEACHER__OUTAGE_SECONDS="
            f"{self._settings.outage_seconds:g}"
        )
        if rule.action is Action.THROTTLE:
            raise error
        outcome.refusal = Refusal(error, Blame.JOB, f"{answer.status} wait", patience=5)
        return True, 0.0

    def _bound_cost(self, row: "_Row") -> float:
        """The maximum dollars for a call; 0 if nothing is known of the price yet."""
        if self._price:
            tier = str(self._settings.extra_body.get("service_tier", ""))
            return self._price.worst_cost(row.max_prompt_tokens, row.limit * row.samples, tier)
        prompt, completion = self._leases.rates or (0.0, 0.0)
        return row.max_prompt_tokens * prompt + row.limit * row.samples * completion

    def _count(
        self, outcome: Outcome, row: "_Row", reply: Reply, answer: Answer, response: Response
    ) -> None:
        """Fills in a call's usage for the quota.

        Raises a SettingsError if the cost is capped, and nobody tells it.
        """
        totals, outcome.headers, usage = outcome.totals, response.headers, answer.usage
        if not response.may_be_paid:
            outcome.used_tokens = 0.0  # refused, or never sent
            return
        outcome.rates = bound_rates(reply, answer)
        if usage is None or reply.http_status == 0:
            totals.cost_usd = self._bound_cost(row)
        else:
            totals.prompt_tokens = usage.prompt_tokens
            totals.completion_tokens = usage.completion_tokens
            totals.reasoning_tokens = usage.reasoning_tokens
            outcome.used_tokens = usage.prompt_tokens + usage.completion_tokens
            totals.cost_usd = find_cost(self._price, reply, answer, row.limit * row.samples)
        if self._needs_cost and answer.is_final and find_told_cost(reply, answer) is None:
            require_price(None, self._settings)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass(slots=True)
class _Row:
    """A request's history."""

    max_prompt_tokens: int
    limit: int
    """Of a response's length, in tokens."""
    samples: int
    calls: int = 0
    attempts: int = 0
    """The calls that count towards `teacher.max_attempts`."""
    first_sent_at: float = 0.0
    answered_before: int | None = None
    """The job's answers at this row's first fault."""

    def start(self, call: Call) -> None:
        self.calls += 1
        self.first_sent_at = self.first_sent_at or call.sent_at

    def waited(self, now: float) -> float:
        return now - self.first_sent_at

    def make_reply(self, key: str, response: Response, now: float) -> Reply:
        return Reply(
            key,
            response.status,
            response.text,
            self.attempts + 1,
            self.waited(now),
            self.max_prompt_tokens,
            self.limit,
            response.cost_usd,
        )

    def fault(self, message: str, is_outage: bool, answered: int) -> Fault:
        is_new = self.answered_before is None
        if self.answered_before is None:
            self.answered_before = answered
        return Fault(message, is_outage, is_new, answered > self.answered_before)


def find_wait(response: Response, answer: Answer) -> float | None:
    """The seconds that the teacher asks to wait; None if it does not."""
    waits = (response.retry_after, answer.api_error.retry_seconds)
    return next((wait for wait in waits if wait is not None), None)


async def gather(calls: Iterable[Awaitable[T]]) -> list[T]:
    """All results; raises the first error once all calls have ended."""
    calls = list(calls)
    if len(calls) == 1:
        return [await calls[0]]  # no task is needed
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    results: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


def _jitter(attempts: int) -> float:
    """Seconds of exponential backoff with full jitter.

    Source: M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """
    base, longest = _BACKOFF_SECONDS
    return random.uniform(0, min(longest, base * 2**attempts))
