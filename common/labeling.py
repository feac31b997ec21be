"""From replies to label rows: parse, and apply the task's label rules."""

from common.records import Example, LabelRow
from common.replies import Answer, Reply, read_answer
from common.rules import apply_rules
from common.tasks import Task


def make_label(example: Example, reply: Reply | None, task: Task) -> LabelRow:
    """The label row for a reply; None where the text was blank and nobody was asked."""
    if reply is None:
        return LabelRow(example.id, example.text, "failed", error="empty_text")
    answer = read_answer(reply)
    if answer.error is not None:
        return _row(example, reply, answer, "failed", None, answer.error)
    label, reason = apply_rules(example.text, answer.text, task.label_rules)
    if reason is not None:
        return _row(example, reply, answer, "filtered", None, reason)
    return _row(example, reply, answer, "ok", label, None)


def _row(
    example: Example,
    reply: Reply,
    answer: Answer,
    status: str,
    label: str | None,
    error: str | None,
) -> LabelRow:
    return LabelRow(
        id=example.id,
        text=example.text,
        status=status,
        label=label,
        error=error,
        message=answer.message,
        response=answer.text or None,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        attempts=reply.attempts,
        seconds=reply.seconds,
    )
