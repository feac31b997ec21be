"""LoRA: the layers that it adapts."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model

from common.errors import SettingsError
from common.settings import Settings, TrainSettings
from common.student.lora import quicken


def make_lora(train: TrainSettings) -> LoraConfig:
    """PEFT's configuration of the settings."""
    names = train.target_modules
    return LoraConfig(
        r=train.lora_rank,
        lora_alpha=train.lora_alpha,
        lora_dropout=train.lora_dropout,
        target_modules="all-linear" if names == ["all-linear"] else names,
        task_type="CAUSAL_LM",
    )


def add_adapter(settings: Settings, student: Any) -> PeftModel:
    """The student with a new adapter. Raises a SettingsError if it lacks the target modules."""
    try:
        model = get_peft_model(student, make_lora(settings.train))
    except ValueError as error:
        names = ",".join(settings.train.target_modules)
        raise SettingsError(f"DISTILL_TRAIN__TARGET_MODULES={names!r}: {error}") from None
    quicken(model)
    return model
