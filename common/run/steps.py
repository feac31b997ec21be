"""The steps of a run: the folders that its jobs make, and what each says when it is done."""

from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar

Summary = TypeVar("Summary", covariant=True)


class LabelSummary(TypedDict, total=False):
    """What the label job did; `inputs` is ok, failed and filtered rows together.

    From `calls` on, figures are those of the job that finished the labels; `run_cost_usd` is that
    of all jobs of the run, None where the price is unknown.
    """

    inputs: int
    ok: int
    failed: int
    filtered: int
    duplicates: int
    reused: int
    calls: int
    retries: int
    throttled: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    call_seconds: float
    optimum_seconds: float
    efficiency: float
    run_cost_usd: float | None
    seconds: float


class TrainSummary(TypedDict, total=False):
    """What the train job did; `agreement` is that of `best_update`, None if none was measured."""

    trainable_parameters: int
    updates: int
    best_update: int
    agreement: float | None
    device: str
    peak_gpu_bytes: int
    seconds: float


class MergeSummary(TypedDict, total=False):
    """How many prompts the merged student answers as the adapter does."""

    compared_prompts: int
    equal_answers: int


class NoSummary(TypedDict):
    """A step that has none."""


@dataclass(frozen=True)
class Step(Generic[Summary]):
    """A folder of a run, and the command that makes it."""

    folder: str
    command: str


LABELS: Step[LabelSummary] = Step("labels", "python -m jobs.label")
ADAPTER: Step[TrainSummary] = Step("adapter", "python -m jobs.train")
MERGED: Step[MergeSummary] = Step("merged", "python -m jobs.train")
PREDICTIONS: Step[NoSummary] = Step("predictions", "python -m jobs.evaluate")


def name_checkpoint(update: int) -> Step[NoSummary]:
    """The step of a training's checkpoint after an update."""
    return Step(f"checkpoints/{update:08}", "python -m jobs.train")
