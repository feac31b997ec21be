"""What the ladder distils: texts with a teacher's answers, and test rows."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from datasets import load_dataset

from common.data.testset import TestRow
from common.records import hash_text
from common.tasks.task import Task, load_task
from tests.benchmarks.measure import ROOT
from tests.real.reviews import load_reviews


@dataclass(frozen=True)
class Asked:
    """A text, and the teacher's answers to it, the first one first.

    `reasoning` and `logprobs`, the chat API's object, are told with each answer.
    """

    text: str
    answers: Sequence[str]
    reasoning: str | None = None
    logprobs: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class LadderTask:
    """A task, the texts to label in a fixed order, the test rows, and what scores them."""

    task: Task
    pool: Sequence[Asked]
    test: Sequence[TestRow]
    metrics: Sequence[str]
    teacher: Sequence[str]
    """The teacher's first answers to the test rows."""
    max_new_tokens: int


def load_sentiment() -> LadderTask:
    """Real sentences; an answer is a person's, the reference is ten other people's mean."""
    reviews = load_reviews()
    test = [review for review in reviews if review.is_test]
    return LadderTask(
        load_task(str(ROOT / "tests/real/reviews.toml")),
        [Asked(review.text, tuple(review.answers)) for review in reviews if not review.is_test],
        [TestRow(hash_text(r.text), r.text, [r.reference], {}) for r in test],
        ["accuracy"],
        [review.answers[0] for review in test],
        max_new_tokens=8,
    )


_CLEAN = 0.35
"""So many texts more have no mistake: users' texts are mostly right."""
_MISSED, _OVERDONE = 0.3, 0.4
_REWORDINGS = [
    (r"\bdo not\b", "don't"),
    (r"\bdidn't\b", "did not"),
    (r"\bis not\b", "isn't"),
    (r"\bit's\b", "it is"),
    (r"\bbegan to\b", "started to"),
    (r"\bvery\b", "really"),
    (r"\bmany\b", "a lot of"),
    (r"\blarge\b", "big"),
    (r"\bcannot\b", "can't"),
    (r"\bthat\b", "which"),
    (r"\bupon\b", "on"),
    (r" and ", ", and "),
    (r" but ", ", but "),
    (r"\b(He|She|They|We) had\b", r"\1'd"),
    (r"\bthe\b", "a"),
    (r"\bwas\b", "is"),
    (r"\.$", "!"),
    (r"^(\w+) ", r"\1, "),
    (r" (\w+)\.$", r" the \1."),
    (r" (\w+ \w+)\.$", r", \1."),
    (r"\b(\w+)s\b", r"\1"),
    (r" (a|an|the) ", " "),
    (r" (in|on|at|for|to) ", " of "),
]
"""As language models change what is right."""


def load_grammar(source: str) -> LadderTask:
    """English sentences; the answers miss mistakes and change what is right.

    The rates are set so that a teacher scores as a 70 B model did in the field: some ten points
    above copying the text.
    """
    pool = [_correct(text, _answer(text, right)) for text, right in read_pairs(source, "train")]
    rows = read_pairs(source, "test")
    return make_grammar(pool, rows, [_answer(text, right) for text, right in rows])


def make_grammar(
    pool: Sequence[Asked], rows: Sequence[tuple[str, str]], teacher: Sequence[str]
) -> LadderTask:
    """The task of a teacher's answers; `rows` are the test texts with their references."""
    return LadderTask(
        load_task("gec"),
        pool,
        [TestRow(hash_text(text), text, [right], {}) for text, right in rows],
        ["exact_match", "edit_f05"],
        teacher,
        max_new_tokens=96,
    )


def _correct(text: str, answer: str) -> Asked:
    """With the edits as the reasoning."""
    before, after = text.split(), answer.split()
    edits = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changed = [
        f"'{' '.join(before[i:j])}' becomes '{' '.join(after[k:n])}'."
        for kind, i, j, k, n in edits
        if kind != "equal"
    ]
    return Asked(text, (answer,), " ".join(changed) or "There is no mistake.")


def read_pairs(source: str, split: str) -> list[tuple[str, str]]:
    """English texts with their references, once each."""
    task, found = load_task("gec"), {}
    for row in load_dataset(source, split=split):
        if row["lang"] != "en":
            continue
        right = row[task.columns.reference]
        text = row[task.columns.text].removeprefix(task.columns.text_prefix)
        is_clean = random.Random(f"clean {right}").random() < _CLEAN
        found[right if is_clean else text] = right
    return list(found.items())


def _answer(text: str, right: str) -> str:
    rng = random.Random(f"answer {text}")
    answer = text if rng.random() < _MISSED else right
    if rng.random() < _OVERDONE:
        for pattern, other in rng.sample(_REWORDINGS, len(_REWORDINGS)):
            if re.search(pattern, answer):
                return re.sub(pattern, other, answer, count=1)
    return answer
