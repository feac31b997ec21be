"""The trainer: TRL's, around the quantised student with a LoRA adapter.

What is done otherwise than by TRL, and why:

* Logits are made of the label's tokens only (TRL's fused head does so on GPUs alone), and no
  metric is read back from the GPU between two log lines.
* LoRA's weights stay fp32. TRL makes them bf16 under a quantised base, where small updates vanish,
  and a resumed training goes another way.
* The order of the batches is planned ahead, so that a resumed training goes on with the very next.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from common.errors import SettingsError
from common.settings import Settings
from common.student.adapter import TENSORBOARD
from common.student.student import choose_dtype, find_student, load_student
from common.training.batches import IGNORED, LabelCollator, compute_logits, plan_batches
from common.training.lora import add_adapter

LOG_UPDATES = 10
"""Updates from one entry of the history to the next."""

Measure = Callable[[Any], dict[str, float]]
"""Measures a model: its `agreement` with the teacher, and its `loss`."""


class LabelTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains on a plan of batches; see the module."""

    def __init__(
        self, plan: Sequence[list[int]], measure: Measure | None, **arguments: Any
    ) -> None:
        """`measure` is called at each evaluation; without it there is none."""
        super().__init__(**arguments)
        self._plan, self.measure = plan, measure
        learned = (sum(t != IGNORED for t in row) for row in self.train_dataset["labels"])
        self._tokens_per_row = sum(learned) / len(self.train_dataset)
        self._is_finite: torch.Tensor | None = None
        self._tokens = 0
        self._logged = time.monotonic()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The planned batches: one epoch of the trainer's is the whole training."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._plan,
            collate_fn=self.data_collator,
            pin_memory=self.args.device.type == "cuda",
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross-entropy of the labels' tokens, over their number in an average update.

        Over their number in this one, a token of a short label would count more than one of a long
        label, since an update's labels have about the same length.
        """
        assert not return_outputs
        del num_items_in_batch
        logits = compute_logits(model, inputs["input_ids"], inputs["positions"])
        total = cross_entropy(logits.float(), inputs["labels"], reduction="sum")
        loss = total / (self._tokens_per_row * len(inputs["input_ids"]))
        self._tokens += inputs["input_ids"].numel()
        self.note(loss)
        return loss

    def note(self, loss: torch.Tensor) -> None:
        """Remembers, on the device, whether every loss was a finite number."""
        finite = torch.isfinite(loss.detach())
        self._is_finite = finite if self._is_finite is None else self._is_finite & finite

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measures the model as it is."""
        assert self.measure is not None
        metrics = {f"eval_{name}": value for name, value in self.measure(self.model).items()}
        self._logged = time.monotonic()
        self._tokens = 0
        SFTTrainer.log(self, metrics)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def load_weights(self, checkpoint: Path) -> None:
        """Takes the adapter of a checkpoint."""
        self._load_from_checkpoint(str(checkpoint))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds speed and memory to what is logged."""
        if "loss" in logs:
            seconds = max(time.monotonic() - self._logged, 1e-9)
            logs["tokens_per_second"] = round(self._tokens / seconds, 1)
            if self.args.device.type == "cuda":
                logs["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
            self._logged, self._tokens = time.monotonic(), 0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: that walks through all modules at each update."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter alone: else the hub is asked whether the embeddings are to be saved, too."""
        del state_dict
        self.model.save_pretrained(output_dir, save_embedding_layers=False)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # without TRL's model card

    def _prepare_input(self, data: Any) -> Any:
        """To the device, without waiting for it."""
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def list_trained(self) -> list[torch.nn.Parameter]:
        """The parameters that are learned: LoRA's."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def check_finite(self) -> None:
        """Raises a SettingsError if a loss, or a weight, is no number any more."""
        norms = torch._foreach_norm([parameter.data for parameter in self.list_trained()])
        is_finite = torch.stack(norms).isfinite().all()
        if self._is_finite is not None:
            is_finite &= self._is_finite
        if not is_finite:
            raise SettingsError(
                f"the loss is no finite number any more, before update {self.state.global_step}; "
                f"lower DISTILL_TRAIN__LEARNING_RATE (now {self.args.learning_rate:g}) or "
                f"DISTILL_TRAIN__MAX_GRAD_NORM (now {self.args.max_grad_norm:g}), delete the run's "
                "folder checkpoints, and run again"
            )


def make_trainer(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    folder: Path,
    measure: Measure | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> LabelTrainer:
    """The trainer around the quantised student with a fresh adapter; it works in `folder`."""
    train = settings.train
    lengths = [len(ids) for ids in dataset["input_ids"]]
    on_gpu = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,  # the plan has them all
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
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # of several GPUs, the first
    model = add_adapter(settings, load_student(settings))
    if TENSORBOARD in train.report_to:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / TENSORBOARD))
    try:
        trainer = LabelTrainer(
            plan_batches(lengths, train.batch_size, train.epochs, train.seed),
            measure,
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=LabelCollator(tokenizer.pad_token_id),
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


def _portable_name(settings: Settings) -> str:
    path = Path(find_student(settings))
    root = Path(__file__).parents[2]
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
