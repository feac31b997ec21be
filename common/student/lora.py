"""LoRA's forward pass, in fewer passes over the output than PEFT's."""

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.autograd.function import once_differentiable

from common.student.cpu import Bf16Linear

_ADAPTER = "default"
"""PEFT's name of the adapter."""


def quicken(model: nn.Module) -> None:
    """Gives plain LoRA layers the forward pass of this module."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear):
            module.forward = MethodType(_forward, module)


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
    """A linear layer with its adapter: x W + alpha / r · dropout(x) A B."""
    if args or kwargs or not _is_plain(layer):
        return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    base, dropout = layer.base_layer, layer.lora_dropout[_ADAPTER]
    lower, raise_, scale = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER], layer.scaling[_ADAPTER]
    is_dropping = layer.training and isinstance(dropout, nn.Dropout)
    if isinstance(base, Bf16Linear):
        if is_dropping:
            return type(layer).forward(layer, x)  # type: ignore[no-any-return]
        output: torch.Tensor = _LoraLinear.apply(
            x.flatten(0, -2), base.weight, base.bias, lower.weight, raise_.weight, scale
        )
        return output.view(*x.shape[:-1], -1)
    if not layer.training:
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    output = base(x)
    return torch.addmm(
        output.flatten(0, -2),
        lower(dropout(x)).flatten(0, -2),
        raise_.weight.t(),
        alpha=scale,
    ).view(output.shape)


class _LoraLinear(torch.autograd.Function):
    """x W + b + s · x A B with a frozen W, all products in its dtype.

    The output and the gradients are in the dtypes of x, A and B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """x: (tokens, in); weight: (out, in); a: (rank, in); b: (out, rank)."""
        low_x, low_a, low_b = (tensor.to(weight.dtype) for tensor in (x, a, b * scale))
        lowered = low_x @ low_a.t()
        output = nn.functional.linear(low_x, weight, bias)
        output.addmm_(lowered, low_b.t())
        ctx.save_for_backward(low_x, lowered, weight, low_a, low_b)
        ctx.scale, ctx.dtype, ctx.x_dtype = scale, a.dtype, x.dtype
        return output.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        x, lowered, weight, low_a, low_b = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        raised = gradient @ low_b
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = gradient @ weight
            to_x = to_x.addmm_(raised, low_a).to(ctx.x_dtype)
        to_a = (raised.t() @ x).to(ctx.dtype)
        to_b = (gradient.t() @ lowered).to(ctx.dtype).mul_(ctx.scale)
        return to_x, None, None, to_a, to_b, None
