"""The trainer: TRL's, around the quantised student with a LoRA adapter."""

import logging
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from common.errors import SettingsError
from common.settings import Settings
from common.student import find_student, load_student

log = logging.getLogger(__name__)


def make_trainer(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, folder: str
) -> SFTTrainer:
    """TRL's trainer around the quantised student with a fresh adapter."""
    train = settings.train
    names = train.target_modules
    lora = LoraConfig(
        r=train.lora_rank,
        lora_alpha=train.lora_alpha,
        lora_dropout=train.lora_dropout,
        target_modules="all-linear" if names == ["all-linear"] else names,
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(load_student(settings), lora)
    except ValueError as error:
        raise SettingsError(f"DISTILL_TRAIN__TARGET_MODULES={','.join(names)!r}: {error}") from None
    on_gpu = torch.cuda.is_available()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=folder,
            num_train_epochs=train.epochs,
            per_device_train_batch_size=train.batch_size,
            learning_rate=train.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=train.warmup_steps,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            optim="adamw_torch",
            seed=train.seed,
            use_cpu=not on_gpu,
            bf16=on_gpu and torch.cuda.is_bf16_supported(),
            activation_checkpointing=False,
            train_sampling_strategy="group_by_length",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[_ProgressLine()],
    )
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # SFTTrainer made them bf16, where small updates vanish.
            parameter.data = parameter.data.float()
    trainer.model.peft_config["default"].base_model_name_or_path = _portable_name(settings)
    return trainer


def _portable_name(settings: Settings) -> str:
    path = Path(find_student(settings))
    root = Path(__file__).parent.parent
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


class _ProgressLine(TrainerCallback):
    """Logs loss, learning rate and progress in one line."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and state.global_step % 50 == 0:
            log.info(
                "train: update %d of %d, loss %.3f, learning rate %.1e",
                state.global_step,
                state.max_steps,
                float(logs["loss"]),
                float(logs["learning_rate"]),
            )
