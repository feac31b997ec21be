"""TRL's trainer around the quantised student with a LoRA adapter.

TRL and transformers give the loop, optimiser, learning rate schedule, mixed precision, activation
checkpointing under PEFT, checkpoints and trackers. The differences, and their reasons:

* The objective makes the tensors and the loss. TRL's loss copies metrics from the GPU at each
  update, and computes logits of label tokens alone on GPUs only.
* LoRA's weights stay fp32. TRL casts them to bf16 on a quantised base: small updates vanish, and
  resuming gives other weights.
* The batches are planned ahead, so that resuming takes the next batch.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from trl import SFTConfig, SFTTrainer

from common.errors import SettingsError
from common.sections import TrainSettings
from common.settings import Settings
from common.student.adapter import TENSORBOARD
from common.student.prompt import IGNORED
from common.student.source import find_student, make_options, read_config
from common.student.weights import choose_dtype, load_weights
from common.training.batches import plan_batches
from common.training.lora import add_adapter, settle_rate
from common.training.objectives.objective import Objective

LOG_UPDATES = 10
"""Updates between two log entries."""

_TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"
_own_folders = [""]
"""What the last training of this process has set it to."""

Measure = Callable[[Any], dict[str, float]]
"""From a model to its `agreement` with the teacher, `agreement_error` and `loss`."""


class LabelTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains on planned batches; see the module."""

    def __init__(
        self,
        objective: Objective,
        plan: Sequence[list[int]],
        measure: Measure | None,
        **arguments: Any,
    ) -> None:
        """`measure` makes the evaluations; None: no evaluation."""
        super().__init__(data_collator=objective.collate, **arguments)
        self._objective, self._plan, self.measure = objective, plan, measure
        self._weight_per_row = _sum_weights(self.train_dataset) / len(self.train_dataset)
        self._is_finite: torch.Tensor | None = None
        self._tokens: torch.Tensor | int = 0
        self._logged = time.monotonic()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The planned batches of the whole training, one epoch for the trainer."""
        loader: DataLoader[Any] = self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                batch_sampler=self._plan,
                collate_fn=self.data_collator,
                pin_memory=self.args.dataloader_pin_memory,
            )
        )
        return loader

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The summed loss, divided by the learned tokens of an average update, or their weights.

        Dividing by those of this update would weight tokens of short labels more, since an update's
        labels have similar lengths.
        """
        assert not return_outputs
        del num_items_in_batch
        total = self._objective.sum_loss(model, inputs)
        loss = total / (self._weight_per_row * len(inputs["lengths"]))
        self._tokens += inputs["lengths"].sum()
        self.track_finite(loss)
        return loss

    def track_finite(self, loss: torch.Tensor) -> None:
        """Tracks, without copying from the device, whether every loss is finite."""
        finite = torch.isfinite(loss.detach())
        self._is_finite = finite if self._is_finite is None else self._is_finite & finite

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measures the model and logs the metrics."""
        assert self.measure is not None
        metrics = {f"eval_{name}": value for name, value in self.measure(self.model).items()}
        self._logged, self._tokens = time.monotonic(), 0
        SFTTrainer.log(self, metrics)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def load_weights(self, checkpoint: Path) -> None:
        """Loads the adapter of a checkpoint."""
        self._load_from_checkpoint(str(checkpoint))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds speed and peak GPU memory to a log entry."""
        if "loss" in logs:
            seconds = max(time.monotonic() - self._logged, 1e-9)
            logs["tokens_per_second"] = round(float(self._tokens) / seconds, 1)
            if self.args.device.type == "cuda":
                logs["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
            self._logged, self._tokens = time.monotonic(), 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Skips the count, which walks all modules at each update."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves the adapter alone, without asking the hub about the embeddings."""
        del state_dict
        self.model.save_pretrained(output_dir, save_embedding_layers=False)

    def list_trained(self) -> list[torch.nn.Parameter]:
        """The trained parameters, LoRA's."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def check_finite(self) -> None:
        """Raises a SettingsError if a loss or a weight is NaN or infinite."""
        norms = torch._foreach_norm([parameter.data for parameter in self.list_trained()])
        is_finite = torch.stack(norms).isfinite().all()
        if self._is_finite is not None:
            is_finite &= self._is_finite
        if not is_finite:
            raise SettingsError(
                f"the loss is NaN or infinite, before update {self.state.global_step}; "
                f"lower DISTILL_TRAIN__LEARNING_RATE (now {self.args.learning_rate:g}) or "
                f"DISTILL_TRAIN__MAX_GRAD_NORM (now {self.args.max_grad_norm:g}), delete the run's "
                "folder checkpoints, and run again"
            )


def make_trainer(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    dataset: Dataset,
    folder: Path,
    measure: Measure | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> LabelTrainer:
    """A trainer of the quantised student with a new adapter; its files go to `folder`."""
    settings = settle_rate(settings)
    train = settings.train
    lengths = [len(ids) for ids in dataset["input_ids"]]
    model = add_adapter(settings, load_weights(settings))
    objective.prepare(model)
    if TENSORBOARD in train.report_to and not _is_users_folder():
        os.environ[_TENSORBOARD_FOLDER] = _own_folders[0] = str(folder / TENSORBOARD)
    try:
        trainer = LabelTrainer(
            objective,
            plan_batches(lengths, train.batch_size, train.epochs, train.seed),
            measure,
            model=model,
            args=_make_arguments(train, folder),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SettingsError(
            f"the trainer refuses these settings: {reason}; see DISTILL_TRAIN__REPORT_TO="
            f"{','.join(train.report_to)!r} and DISTILL_TRAIN__TARGET_MODULES="
            f"{','.join(train.target_modules)!r}"
        ) from None
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.list_trained():
        parameter.data = parameter.data.float()
    trainer.model.peft_config["default"].base_model_name_or_path = _portable_name(settings)
    return trainer


def check_training(settings: Settings) -> None:
    """Raises a SettingsError if the student lacks the target modules, or a tracker is unknown.

    Without the weights: `jobs.pipeline` asks before anything is paid for.
    """
    config, trust = read_config(settings), make_options(settings)["trust_remote_code"]
    with torch.device("meta"):
        add_adapter(settings, AutoModelForCausalLM.from_config(config, trust_remote_code=trust))
    trackers = settings.train.report_to
    try:
        for make_callback in get_reporting_integration_callbacks(trackers):
            make_callback()
    except (ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SettingsError(f"DISTILL_TRAIN__REPORT_TO={','.join(trackers)!r}: {reason}") from None


def _is_users_folder() -> bool:
    """Whether the user says where TensorBoard's files go, rather than an earlier training."""
    return os.environ.get(_TENSORBOARD_FOLDER) not in (None, *_own_folders)


def _sum_weights(dataset: Dataset) -> float:
    """The weights of all learned tokens."""
    if "weights" in dataset.column_names:
        return float(sum(map(sum, dataset["weights"])))
    return float(sum(token != IGNORED for row in dataset["labels"] for token in row))


def _make_arguments(train: TrainSettings, folder: Path) -> SFTConfig:
    on_gpu = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,  # the plan has all epochs
        per_device_train_batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch_fused",
        seed=train.seed,
        use_cpu=not on_gpu,
        bf16=on_gpu and choose_dtype() is torch.bfloat16,
        fp16=on_gpu and choose_dtype() is torch.float16,
        activation_checkpointing=train.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        logging_steps=LOG_UPDATES,
        logging_nan_inf_filter=False,
        save_strategy="no",  # see Schedule
        report_to=train.report_to or "none",
        dataloader_pin_memory=on_gpu,
        accelerator_config={"non_blocking": on_gpu},  # copies during computation
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # the first of several GPUs
    return arguments


def _portable_name(settings: Settings) -> str:
    if settings.student.model.lower().endswith(".gguf"):
        return settings.student.model  # whose unpacked folder is this machine's
    path = Path(find_student(settings))
    root = Path(__file__).parents[2]
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
