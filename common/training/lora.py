"""LoRA: the layers that it adapts, and its learning rate."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model

from common.errors import SettingsError
from common.sections import TrainSettings
from common.settings import Settings
from common.student.lora import quicken
from common.student.source import read_config

_FULL_RATE, _WIDTH = 5e-5, 2000
"""The rate of full fine-tuning at a width."""
_LLAMA_POWER, _QWEN_POWER = 0.781, 0.0775


def settle_rate(settings: Settings, rate: float | None = None) -> Settings:
    """The settings with a learning rate: theirs, the given one, or that of the student's width."""
    if settings.train.learning_rate is not None:
        return settings
    config = read_config(settings).get_text_config()
    usual = choose_rate(getattr(config, "hidden_size", _WIDTH), config.model_type)
    train = settings.train.model_copy(update={"learning_rate": rate or usual})
    return settings.model_copy(update={"train": train})


def choose_rate(width: int, kind: str = "llama") -> float:
    """The learning rate for a student of a kind whose hidden states have this width.

    Source: J. Schulman, LoRA Without Regret (Thinking Machines Lab, 2025), and the lab's cookbook:
    ten times the rate of full fine-tuning, for an alpha of 32 and any rank, falling with the width;
    the power is fitted to Llamas and, apart, to Qwens. Others get that of Llamas.
    """
    power = _QWEN_POWER if kind.startswith("qwen") else _LLAMA_POWER
    return float(f"{10 * _FULL_RATE * (_WIDTH / width) ** power:.2g}")


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
    names = settings.train.target_modules
    variable = f"DISTILL_TRAIN__TARGET_MODULES={','.join(names)!r}"
    try:
        model = get_peft_model(student, make_lora(settings.train))
    except ValueError as error:
        raise SettingsError(f"{variable}: {error}") from None
    found = {name.rpartition(".")[2] for name in model.targeted_module_names}
    if missing := {name.rpartition(".")[2] for name in names} - found - {"all-linear"}:
        raise SettingsError(  # PEFT passes over those
            f"{variable}: the student has no module {', '.join(sorted(missing))}; it has "
            f"{', '.join(sorted(found))} of these"
        )
    quicken(model)
    return model
