"""LoRA: the layers that it adapts, and their forward pass in training."""

from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from common.errors import SettingsError
from common.settings import Settings, TrainSettings

_ADAPTER = "default"
"""PEFT's name of the adapter."""


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
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear):
            module.forward = MethodType(_forward, module)
    return model


def _is_plain(layer: Any) -> bool:
    """Whether the layer is plain LoRA: active, unmerged, no variant such as DoRA, no bias."""
    return (
        not layer.lora_variant
        and not any(layer.lora_bias.values())
        and not layer.disable_adapters
        and not layer.merged
        and layer.active_adapters == [_ADAPTER]
    )


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A linear layer with its adapter: x W + alpha / r · dropout(x) A B.

    One `addmm` replaces three passes of PEFT over the whole output: copy, scale, add.
    """
    if args or kwargs or not layer.training or not _is_plain(layer):
        return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    output = layer.base_layer(x)
    lowered = layer.lora_A[_ADAPTER](layer.lora_dropout[_ADAPTER](x))
    return torch.addmm(
        output.flatten(0, -2),
        lowered.flatten(0, -2),
        layer.lora_B[_ADAPTER].weight.t(),
        alpha=layer.scaling[_ADAPTER],
    ).view(output.shape)
