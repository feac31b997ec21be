"""Makes label rows from replies: parse, apply the task's label rules, take the majority."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.metrics.text import normalize
from common.records import Example, LabelRow
from common.tasks.rules import apply_rules
from common.tasks.task import Task
from common.teacher.replies import FINAL_ERRORS, Answer, Reply, read_answer
from common.teacher.usage import Usage

_EMPTY = "empty_text"


@dataclass(frozen=True)
class Outcome:
    """An example's row, with those of its replies that are in the journal only."""

    row: LabelRow
    replies: Sequence[Reply] = ()


def make_label(example: Example, replies: Sequence[Reply], task: Task) -> LabelRow:
    """The label row for the replies of all samples; a blank text has none, and fails.

    The samples that pass the label rules vote. Labels that differ only in white space, typographic
    quotes and compatible Unicode characters are the same vote; case counts. The label is the most
    frequent spelling of the most frequent vote; in a draw, the first sample's. If no sample passes,
    the row's error is the most frequent rule that filters one, else the most frequent error.

    Response, reasoning, message, finish reason and log-probabilities are the chosen sample's.
    Tokens and attempts are sums; seconds are the maximum, as samples run concurrently.
    """
    if not replies:
        return LabelRow(example.id, example.text, "failed", error=_EMPTY)
    samples = [_read_sample(example.text, reply, task) for reply in replies]
    status = min((sample.status for sample in samples), key=("ok", "filtered", "failed").index)
    voters = [sample for sample in samples if sample.status == status]
    votes = [sample.error or normalize(sample.label or "") for sample in voters]
    elected = _find_commonest(votes)
    winners = [s for s, vote in zip(voters, votes, strict=True) if vote == elected]
    label = _find_commonest(sample.label for sample in winners)
    chosen = next(sample for sample in winners if sample.label == label)
    answer = chosen.answer
    is_shared = status == "ok" and len(samples) > 1
    shares = _share(voters, votes, {elected: label}) if is_shared else {}
    usages = [sample.answer.usage or Usage() for sample in samples]
    return LabelRow(
        id=example.id,
        text=example.text,
        status=status,
        label=label,
        error=chosen.error,
        message=answer.message,
        response=answer.text or None,
        reasoning=answer.reasoning,
        finish_reason=answer.finish_reason,
        agreement=len(winners) / len(samples) if status == "ok" else None,
        samples=len(samples),
        labels=list(shares) or None,
        shares=list(shares.values()) or None,
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        attempts=sum(reply.attempts for reply in replies),
        seconds=max(reply.seconds for reply in replies),
        **(vars(answer.logprobs) if answer.logprobs else {}),
    )


def _share(
    voters: Sequence["_Sample"], votes: Sequence[str], spelled: dict[str | None, str | None]
) -> dict[str, float]:
    """The share of each vote, by its most frequent spelling unless it is `spelled`."""
    shares = {}
    for vote, count in Counter(votes).most_common():
        labels = [s.label for s, own in zip(voters, votes, strict=True) if own == vote]
        shares[spelled.get(vote) or _find_commonest(labels) or ""] = count / len(voters)
    return shares


def is_final(row: LabelRow) -> bool:
    """Whether the teacher has answered, or need not be asked; else another run may ask again."""
    return row.status != "failed" or row.error in (*FINAL_ERRORS, _EMPTY)


@dataclass(frozen=True)
class _Sample:
    answer: Answer
    status: str
    label: str | None
    error: str | None


def _read_sample(text: str, reply: Reply, task: Task) -> _Sample:
    answer = read_answer(reply)
    if answer.error is not None:
        return _Sample(answer, "failed", None, answer.error)
    label, broken_rule = apply_rules(text, answer.text, task.label_rules)
    if broken_rule is not None:
        return _Sample(answer, "filtered", None, broken_rule)
    return _Sample(answer, "ok", label, None)


def _find_commonest(items: Iterable[str | None]) -> str | None:
    """The most frequent item; in a draw, the first."""
    return Counter(items).most_common(1)[0][0]
