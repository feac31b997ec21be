"""The steps of a run: their folders, their commands and the summaries in their manifests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from typing_extensions import TypedDict  # pydantic checks no other before Python 3.12

Summary = TypeVar("Summary", covariant=True)
_MANIFEST = "manifest.json"


class LabelSummary(TypedDict, total=False):
    """The label job's figures; `inputs` is the sum of `ok`, `failed` and `filtered` rows.

    `transient` counts the failed rows that another run may answer. `adaptations` say how requests
    differ from those of OpenAI's first chat models.

    From `calls` on, they are those of the job that finished the labels, except `run_cost_usd`,
    which adds up all jobs of the run. Costs are None if the price is unknown.
    """

    inputs: int
    ok: int
    failed: int
    filtered: int
    transient: int
    duplicates: int
    reused: int
    calls: int
    retries: int
    throttled: int
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    adaptations: list[str]
    cost_usd: float | None
    call_seconds: float
    optimum_seconds: float
    efficiency: float
    run_cost_usd: float | None
    seconds: float


class TrainSummary(TypedDict, total=False):
    """The train job's figures; `agreement` is that of `best_update`, None if not measured."""

    trainable_parameters: int
    updates: int
    best_update: int
    agreement: float | None
    device: str
    peak_gpu_bytes: int
    seconds: float


class CurveSummary(TypedDict):
    """Numbers of labels, each with the agreement of a training on them, and on how many rows."""

    points: list[tuple[int, float]]
    held_out: int


class MergeSummary(TypedDict, total=False):
    """How many prompts the merged student answers like the adapter."""

    compared_prompts: int
    equal_answers: int


class GgufSummary(TypedDict, total=False):
    """The sizes of the GGUF files, by name."""

    bytes: dict[str, int]


class PredictSummary(TypedDict, total=False):
    """The predict job's figures: rows in all, by who answered, and by error; and the drift.

    `threshold` is the confidence below which the teacher answers; None without a cascade.
    """

    rows: int
    student: int
    teacher: int
    errors: dict[str, int]
    threshold: float | None
    mean_confidence: float | None
    drift: Mapping[str, Any]
    seconds: float


class NoSummary(TypedDict):
    """The summary of a step without figures."""


@dataclass(frozen=True)
class Step(Generic[Summary]):
    """A folder of a run, the command that writes it, and the type of its summary."""

    folder: str
    command: str
    summary: Any

    @property
    def manifest(self) -> str:
        """The manifest's file; readers of Parquet folders pass over names that begin with _."""
        return f"{self.folder}/_{_MANIFEST}"

    @property
    def old_manifest(self) -> str:
        """Where version 0.1 wrote it."""
        return f"{self.folder}/{_MANIFEST}"


def is_manifest(name: str) -> bool:
    """Whether a file is the manifest of a step."""
    return name.rpartition("/")[2].removeprefix("_") == _MANIFEST


LABELS: Step[LabelSummary] = Step("labels", "python -m jobs.label", LabelSummary)
ADAPTER: Step[TrainSummary] = Step("adapter", "python -m jobs.train", TrainSummary)
CURVE: Step[CurveSummary] = Step("curve", "python -m jobs.train", CurveSummary)
MERGED: Step[MergeSummary] = Step("merged", "python -m jobs.train", MergeSummary)
GGUF: Step[GgufSummary] = Step("gguf", "python -m jobs.train", GgufSummary)
PREDICTIONS: Step[NoSummary] = Step("predictions", "python -m jobs.evaluate", NoSummary)


def name_outputs(folder: str) -> Step[PredictSummary]:
    """The outputs in a folder as a step."""
    return Step(folder, "python -m jobs.predict", PredictSummary)


def name_checkpoint(update: int) -> Step[NoSummary]:
    """The checkpoint after an update as a step."""
    return Step(f"checkpoints/{update:08}", "python -m jobs.train", NoSummary)
