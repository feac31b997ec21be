"""The levers of the ladder, each a line of its table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.ladder_tasks import Asked

TASKS = ("reviews", "grammar", "family")
BOTH = ("reviews", "grammar")
Choose = Callable[[Sequence[Asked], int], list[tuple[Asked, Sequence[str]]]]
"""From texts in random order and a budget of answers: texts, each with the answers it has."""


def ask(answers: int = 1, are_free: bool = False) -> Choose:
    """So many answers to a text; only the first one counts if the others `are_free`.

    A teacher's log-probabilities are such: they tell of all answers that it might give.
    """

    def choose(asked: Sequence[Asked], budget: int) -> list[tuple[Asked, Sequence[str]]]:
        texts = asked[: budget if are_free else budget // answers]
        return [(row, row.answers[:answers]) for row in texts]

    return choose


ASK_ONCE = ask()


@dataclass(frozen=True)
class Lever:
    """One line of the table."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    choose: Choose = ASK_ONCE
    tasks: Sequence[str] = BOTH
    rounds: int = 1
    is_filtered: bool = False
    """Whether labels go that a student trained on the other half contradicts."""
    rationale: str | None = None
    """The prompt for which the student learns the teacher's reasoning as well."""


def vary(name: str, variable: str, *values: str, tasks: Sequence[str] = BOTH) -> list[Lever]:
    return [Lever(f"{name} {value}", {variable: value}, tasks=tasks) for value in values]


REAL = ("reviews",)
FAMILY = ("family",)


LEVERS = [
    Lever("default", tasks=TASKS),
    *vary("learning rate", "TRAIN__LEARNING_RATE", "2e-4", "4e-4", "8e-4", "3e-3"),
    *vary("rank", "TRAIN__LORA_RANK", "4", "8", "32", "64"),
    *vary("epochs", "TRAIN__EPOCHS", "1", "2", "5"),
    *vary("batch", "TRAIN__BATCH_SIZE", "4", "16"),
    *vary("dropout", "TRAIN__LORA_DROPOUT", "0.1"),
    *vary("quantization", "STUDENT__QUANTIZATION", "none"),
    *vary("edit weight", "TRAIN__EDIT_WEIGHT", "2", "3", tasks=["grammar"]),
    Lever(
        "the edits as reasoning",
        tasks=["grammar"],
        rationale="Name the mistakes of the sentence:\n{text}",
    ),
    Lever("the teacher's likeliest tokens", {"TRAIN__TARGETS": "tokens"}, tasks=FAMILY),
    Lever("by its confidence", {"TRAIN__TARGETS": "weighted"}, tasks=FAMILY),
    Lever("3 rounds, the student chooses", rounds=3),
    Lever("cross-filtering", is_filtered=True),
    *(
        Lever(f"3 answers to a third of the texts, {kind}", {"TRAIN__TARGETS": kind}, ask(3), REAL)
        for kind in ("label", "weighted", "shares")
    ),
    *(
        Lever(f"10 answers, {kind}", {"TRAIN__TARGETS": kind}, ask(10, are_free=True), REAL)
        for kind in ("label", "weighted", "shares")
    ),
]
