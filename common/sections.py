"""The sections of the settings, each with its fields: add one here."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode

from common.fields import RUN_NAME, Amount, Count, Section, check_url, parse_json, split_names
from common.urls import Location

BUILTIN = "builtin"
"""The value of a setting that selects the project's own data, teacher or student."""

_OWN_PARAMETERS = {
    "model": "DISTILL_TEACHER__MODEL",
    "messages": "the task",
    "prompt": "the task",
    "stop": "the task",
    "response_format": "the task",
    "max_tokens": "DISTILL_TEACHER__MAX_TOKENS",
    "max_completion_tokens": "DISTILL_TEACHER__MAX_TOKENS",
    "temperature": "DISTILL_TEACHER__TEMPERATURE",
    "logprobs": "DISTILL_TEACHER__LOGPROBS",
    "top_logprobs": "DISTILL_TEACHER__LOGPROBS",
    "n": "DISTILL_LABEL__SAMPLES",
    "stream": "the job, which reads whole responses",
}
"""What no extra parameter may replace."""

SECRETS = ("api_key", "extra_headers")
"""The settings of the teacher that no worker, manifest or log gets."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The published reference experiment; its number of epochs is unpublished.
    "reference": {
        "held_out": 0,
        "lora_rank": 8,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"],
        "learning_rate": 2e-4,
        "warmup_steps": 100,
        "weight_decay": 0.05,
        "batch_size": 8,
        "max_grad_norm": 0.3,
    },
    # For a GPU with little memory: recomputes activations.
    "lean": {"gradient_checkpointing": True},
    # The learning rate by trial, see `common.training.subsets`.
    "auto": {},
    # For the built-in student: 2 M parameters take a far higher learning rate than 1 B.
    "builtin": {
        "learning_rate": 3e-3,
        "epochs": 4,
        "batch_size": 16,
        "lora_rank": 32,
        "edit_weight": 3,
    },
}


class StorageSettings(Section):
    """Where runs are kept."""

    root: Location = Field("runs", description="Folder or s3://bucket/prefix that holds all runs.")
    wait_seconds: Amount = Field(0, description="Time to wait for the previous job to end.")

    @property
    def absolute_root(self) -> str:
        """The root for a process in any working folder."""
        return self.root if "://" in self.root else str(Path(self.root).absolute())


class DataSettings(Section):
    """The examples."""

    source: Location = Field(
        "juancavallotti/multilingual-gec",
        description="`builtin`, a Hugging Face data set, or a file, folder or s3 URL of parquet, "
        "jsonl, json, csv, tsv, arrow or txt, also as .gz, .bz2, .zst or .lz4. The names of "
        "folders or files tell the split: train, test.",
    )
    test_source: Location | None = Field(
        None, description="Source of the test split, if not `source`."
    )
    config: str | None = Field(None, description="The hub data set's configuration.")
    revision: str | None = Field(None, description="The hub data set's branch, tag or commit.")
    s3_anonymous: bool = Field(False, description="Read `s3://` sources without keys.")
    s3_key: str = Field("", description="Access key of the sources' store, if not the run's.")
    s3_secret: SecretStr = Field(SecretStr(""), description="Its secret key.")
    s3_endpoint_url: str = Field("", description="Its endpoint, if not AWS_ENDPOINT_URL.")
    train_limit: Count = Field(5000, description="Examples to label, by content hash; 0: all.")
    test_limit: Count = Field(0, description="Test rows, chosen by content hash; 0: all.")
    text_column: str | None = Field(None, description="Column of the text; empty: the task's.")
    reference_column: str | None = Field(
        None, description="Column of the reference, used only to evaluate; empty: the task's."
    )
    text_prefix: Annotated[str, StringConstraints(strip_whitespace=False)] | None = Field(
        None, description="Prefix to remove from every text; empty: the task's."
    )


class TeacherSettings(Section):
    """The big model, and the limits of its calls."""

    base_url: str = Field(
        default_factory=lambda: os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1",
        validate_default=True,
        description="OpenAI-compatible API, with its /v1; `builtin`: a rule-based stand-in. "
        "Default: OPENAI_BASE_URL, else OpenAI's.",
    )
    model: str = Field("", description="Name of the model in the API.")
    api_key: SecretStr = Field(
        default_factory=lambda: SecretStr(os.environ.get("OPENAI_API_KEY", "")),
        validate_default=True,
        description="Key of the API. Default: OPENAI_API_KEY.",
    )
    endpoint: Literal["chat", "completions"] = Field(
        "chat", description="/chat/completions, or the legacy /completions."
    )
    requests_per_minute: Count | None = Field(
        None, ge=1, description="Request quota of the whole job; empty: unknown."
    )
    tokens_per_minute: Count | None = Field(
        None, ge=1, description="Token quota of the whole job; empty: unknown."
    )
    max_concurrency: Count = Field(64, ge=1, description="Calls in flight, over all actors.")
    timeout_seconds: Amount = Field(60, gt=0, description="Time limit of one call.")
    max_attempts: int = Field(
        6, ge=1, le=1000, description="Calls per example, 429s aside, until it fails."
    )
    max_tokens: Count = Field(512, ge=1, description="Length limit of a response, in tokens.")
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature.")
    logprobs: int = Field(0, ge=0, le=20, description="Top log-probabilities per token to keep.")
    extra_body: Annotated[dict[str, Any], NoDecode] = Field(
        {}, description='More parameters of each request, as JSON: {"reasoning_effort": "low"}.'
    )
    extra_headers: Annotated[dict[str, SecretStr], NoDecode] = Field(
        {}, description='More headers of each request, as JSON: {"api-key": "…"}. Kept secret.'
    )
    startup_seconds: Amount = Field(
        120, description="Time for a teacher that loads its model to give its first answer."
    )
    outage_seconds: Amount = Field(
        900, description="Longest wait while the teacher is down, or asks to wait."
    )
    prices: Location | None = Field(
        None, description="Path or s3 URL of a TOML file with more model prices."
    )

    @field_validator("base_url")
    @classmethod
    def _check_address(cls, url: str) -> str:
        return url if url == BUILTIN else check_url(url, "the key is DISTILL_TEACHER__API_KEY")

    _parse = field_validator("extra_body", "extra_headers", mode="before")(parse_json)

    @field_validator("extra_body")
    @classmethod
    def _check_body(cls, body: dict[str, Any]) -> dict[str, Any]:
        for name in body:
            if name in _OWN_PARAMETERS:
                raise ValueError(f"{name!r} is set by {_OWN_PARAMETERS[name]}")
        return body

    @field_validator("extra_headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            text = value.get_secret_value()
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise ValueError(f"{name!r} is not the name of a header")
            if not (text.isascii() and text.isprintable()):
                raise ValueError(f"the value of {name!r} should be one line of ASCII characters")
        return headers

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value().strip()  # files and secrets often end in a newline
        if not (text.isascii() and (text.isprintable() or not text)):
            raise ValueError("should be one line of ASCII characters")
        return SecretStr(text)

    @model_validator(mode="after")
    def _name_stand_in(self) -> "TeacherSettings":
        if self.base_url == BUILTIN and self.model != "stand-in":
            return self.model_copy(update={"model": "stand-in"})
        return self


class LabelSettings(Section):
    """The label job."""

    actors: int = Field(2, ge=1, le=10_000, description="Ray actors that share the calls.")
    actor_cpus: float = Field(
        0.1, ge=0.001, le=1000, description="CPUs that Ray reserves for an actor."
    )
    lane: Literal["online", "batch"] = Field(
        "online", description="batch: OpenAI's Batch API, at half the price, within a day."
    )
    batch_requests: Count = Field(50_000, ge=1, description="Requests per batch, at most.")
    batch_megabytes: float = Field(
        200, ge=0.001, le=1e6, description="Size of a batch's file, at most."
    )
    batch_wait_seconds: Amount = Field(
        90_000, description="How long to wait for batches; then run again to collect them."
    )
    batch_rest: Literal["batch", "online"] = Field(
        "batch", description="How to ask for what a batch has not answered."
    )
    samples: int = Field(1, ge=1, le=1000, description="Responses per example; the majority wins.")
    rounds: int = Field(
        1,
        ge=1,
        le=1000,
        description="Rounds; from the second on, the student chooses the texts to label.",
    )
    stop_gain: Amount = Field(
        0.0, description="Points of agreement under which another round is not worth it."
    )
    max_cost_usd: Amount | None = Field(None, gt=0, description="Cost cap of the run; empty: none.")
    drain_seconds: Amount = Field(25, description="Time for calls in flight after SIGTERM.")
    dry_run: bool = Field(
        False, description="Only print the forecast, as the flag `--dry-run` does."
    )
    preview: Count = Field(
        0, description="Only ask for so many examples and show them, as `--preview 10` does."
    )
    max_failure_rate: float = Field(0.1, ge=0, le=1, description="Share of rows that may fail.")
    dashboard_host: str | None = Field(
        None, description="Listening address of the job's Ray dashboard, port 8265; empty: none."
    )


class StudentSettings(Section):
    """The small model."""

    model: Location = Field(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        description="`builtin`, a Hugging Face model, a local folder, or a GGUF file.",
    )
    models: Annotated[list[str], NoDecode] = Field(
        [], description="Several students, by comma, for the pipeline: a run for each, one table."
    )
    revision: str | None = Field(None, description="The hub model's branch, tag or commit.")
    trust_remote_code: str = Field(
        "",
        description="The student whose own code may run: a folder, or `<model>@<revision>`.",
    )
    allow_pickle: bool = Field(
        False, description="Load pickled weights (.bin), which may run code, too."
    )
    quantization: Literal["nf4", "none"] = Field(
        "nf4", description="Quantization of the base weights, in training and evaluation."
    )
    max_tokens: Count = Field(512, ge=8, description="Prompt and label; longer rows are dropped.")
    require_gpu: bool = Field(False, description="Fail without a GPU instead of using the CPU.")

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, names: str | list[str]) -> list[str]:
        return split_names(names)


class TrainSettings(Section):
    """The train job. A preset sets some of the fields below it; a field that is set wins."""

    preset: Literal["default", "reference", "lean", "builtin", "auto"] = Field(
        "default",
        description="`auto` tries learning rates first; `builtin` is the built-in student's.",
    )
    epochs: Amount = Field(3, gt=0, description="Passes over the labels.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of batches, dropout and LoRA's weights.")
    batch_size: Count = Field(8, ge=1, description="Examples per update.")
    learning_rate: Amount | None = Field(
        None, gt=0, description="Peak of the cosine schedule; empty: by the student's width."
    )
    warmup_steps: Count = Field(20, description="Updates of linear warm-up.")
    weight_decay: Amount = Field(0.0, description="AdamW's weight decay.")
    max_grad_norm: Amount = Field(1.0, gt=0, description="Gradient clipping.")
    lora_rank: int = Field(8, ge=1, le=65_536, description="LoRA's rank r.")
    lora_alpha: Count = Field(32, ge=1, description="LoRA's alpha; its scale is alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="LoRA's dropout; 0 is much faster.")
    target_modules: Annotated[list[str], NoDecode] = Field(
        ["all-linear"], min_length=1, description="Modules to adapt, by comma; `all-linear`: all."
    )
    targets: Literal["label", "weighted", "shares", "tokens"] = Field(
        "label",
        description="What is learned: the label; the same, by the teacher's certainty; all "
        "sampled or allowed labels, by their shares; or the teacher's likeliest tokens, too.",
    )
    edit_weight: Amount = Field(
        1.0, gt=0, description="Weight in the loss of a label's tokens that its text lacks."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations instead of keeping them: slower, less memory."
    )
    held_out: Count = Field(
        200, description="Labels held out to choose the checkpoint; at most 10 % of all."
    )
    evaluations: int = Field(
        6, ge=1, le=10_000, description="Evaluations on the held-out labels, evenly spaced."
    )
    patience: Count = Field(
        3,
        description="Early stopping: evaluations in a row that are worse than the best by more "
        "than a standard error; 0: off.",
    )
    curve: bool = Field(
        False, description="Also train on an eighth, a quarter and a half, for a learning curve."
    )
    checkpoint_seconds: Amount = Field(300, gt=0, description="Longest time between checkpoints.")
    report_to: Annotated[list[str], NoDecode] = Field(
        [], description="Installed trackers to use, by comma: tensorboard, mlflow, wandb …"
    )
    export: Annotated[list[Literal["merged", "gguf"]], NoDecode] = Field(
        [],
        description="More forms to write, by comma: `merged` (the student with the adapter merged "
        "in), `gguf` (the same for llama.cpp and Ollama).",
    )
    merge: bool = Field(False, description="The same as `DISTILL_TRAIN__EXPORT=merged`.")
    push_to: str | None = Field(
        None,
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=96,
        description="Hub repository for the adapter and the exports; uses HF_TOKEN.",
    )

    @property
    def exports(self) -> set[str]:
        """What is written beside the adapter."""
        return {*self.export, *(["merged"] if self.merge else [])}

    @model_validator(mode="after")
    def _check_weights(self) -> "TrainSettings":
        if self.targets == "tokens" and self.edit_weight != 1:
            raise ValueError("DISTILL_TRAIN__TARGETS=tokens needs DISTILL_TRAIN__EDIT_WEIGHT=1")
        return self

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        return PRESETS.get(str(given.get("preset", "default")), {}) | given

    @field_validator("target_modules", "report_to", "export", mode="before")
    @classmethod
    def _split_names(cls, names: str | list[str]) -> list[str]:
        return split_names(names)


class Endpoint(Section):
    """A served model that the evaluation compares.

    Attributes:
        base_url: its OpenAI-compatible API.
        model: its name there; empty: the only one that the API lists.
        prompt: the task's prompt for the student, the text alone, or the teacher's prompt.
        api_key_variable: the environment variable with its key.
        max_tokens: the length limit of its answers; None: the student's, or the teacher's.
        requests_per_minute: its quota.
        extra_body: more parameters of each request.
    """

    base_url: str
    model: str = ""
    prompt: Literal["student", "text", "teacher"] = "student"
    # not the key itself, which mostly has lower-case letters
    api_key_variable: str = Field("", pattern=r"^([A-Z][A-Z0-9_]*)?$")
    max_tokens: Count | None = Field(None, ge=1)
    requests_per_minute: Count | None = Field(None, ge=1)
    extra_body: dict[str, Any] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _take_url(cls, given: Any) -> Any:
        return {"base_url": given} if isinstance(given, str) else given

    @field_validator("base_url")
    @classmethod
    def _check_address(cls, url: str) -> str:
        return check_url(url, "api_key_variable names the variable with the key")

    @field_validator("extra_body")
    @classmethod
    def _check_body(cls, body: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(set(body) & set(_OWN_PARAMETERS)):
            raise ValueError(f"{taken[0]!r} is set by the job")
        return body

    def describe(self) -> dict[str, Any]:
        """What its answers depend on."""
        return self.model_dump(
            mode="json", exclude={"api_key_variable", "requests_per_minute"}, exclude_defaults=True
        )


class EvaluateSettings(Section):
    """The evaluate job."""

    batch_tokens: Count = Field(16_384, ge=64, description="Prompt and response tokens per batch.")
    max_new_tokens: Count = Field(256, ge=1, description="Length limit of a student's response.")
    samples: int = Field(
        0,
        ge=0,
        le=1000,
        description="Sampled answers a text, whose agreement tells how sure a student is.",
    )
    margin: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="How much lower than the teacher's the main metric of a cascade may be.",
    )
    usd_per_hour: Amount = Field(
        0, description="Price of the machine that trains the student and runs it."
    )

    endpoints: Annotated[
        dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+$")], Endpoint], NoDecode
    ] = Field(
        {},
        description='Served models to compare, as JSON: {"served": "http://localhost:8000/v1"}.',
    )
    min_retention: Amount = Field(
        0.0, description="Share of the teacher's score to keep, else exit code 6; 0: any."
    )

    _parse = field_validator("endpoints", mode="before")(parse_json)


class PredictSettings(Section):
    """The predict job."""

    source: Location = Field(
        "", description="The texts to answer: as DISTILL_DATA__SOURCE; of a folder, all files."
    )
    split: str = Field("", description="Split of a hub data set, or of `builtin`; empty: train.")
    name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="Name of the outputs: a folder of the run; empty: by the source.",
    )
    keep: Annotated[list[str], NoDecode] = Field(
        [], description="Columns of the source to keep, by comma; `id:key` renames one."
    )
    actors: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Students at work; 0: one per GPU, or per node of a cluster without.",
    )
    part_rows: Count = Field(2000, ge=1, description="Rows of a part, which is written at once.")
    cascade: str = Field(
        "off",
        description="Whom to leave to the teacher: `off`; `auto`: as evaluate has chosen; or the "
        "confidence, such as 0.8, below which it answers.",
    )

    @field_validator("keep", mode="before")
    @classmethod
    def _split_columns(cls, names: str | list[str]) -> list[str]:
        return split_names(names)

    @field_validator("cascade")
    @classmethod
    def _check_cascade(cls, cascade: str) -> str:
        if cascade not in ("off", "auto") and not re.fullmatch(r"0?\.\d+|0|1(\.0*)?", cascade):
            raise ValueError("should be off, auto, or a number from 0 to 1")
        return cascade


class ReportSettings(Section):
    """The report job."""

    serve: str = Field(
        "", description="host:port to serve the report at until stopped; `--serve`: localhost:8080."
    )

    compare: Annotated[list[str], NoDecode] = Field(
        [], description="Runs to compare, by comma, instead of a run's report; `--compare a b`."
    )

    @field_validator("compare", mode="before")
    @classmethod
    def _split_runs(cls, names: str | list[str]) -> list[str]:
        return split_names(names)

    @field_validator("compare")
    @classmethod
    def _check_runs(cls, names: list[str]) -> list[str]:
        if not all(re.fullmatch(RUN_NAME, name) for name in names):
            raise ValueError("should be names of letters, digits, dots, dashes and underscores")
        if names and len(set(names)) < max(2, len(names)):
            raise ValueError("should be two runs or more, each once")
        return names

    @model_validator(mode="after")
    def _check_serve(self) -> "ReportSettings":
        if self.compare and self.serve:
            raise ValueError("DISTILL_REPORT__SERVE shows one run's report: leave out __COMPARE")
        return self

    @field_validator("serve")
    @classmethod
    def _check_address(cls, address: str) -> str:
        if address.lower() == "true":  # the flag
            return "localhost:8080"
        found = re.fullmatch(r"[^\s/]+:(\d{1,5})", address, re.ASCII)
        if address and not (found and 0 < int(found[1]) < 2**16):
            raise ValueError("should be host:port, such as localhost:8080")
        return address
