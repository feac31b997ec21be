"""LoRA's forward pass, in fewer passes over the output than PEFT's."""

from types import MethodType
from typing import Any

import torch
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit
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
    is_joint = isinstance(base, Bf16Linear) or (layer.training and _is_of_4_bits(base))
    if is_joint and not is_dropping:
        output: torch.Tensor = _LoraLinear.apply(
            x.flatten(0, -2),
            base.weight,
            getattr(base.weight, "quant_state", None),
            base.bias,
            lower.weight,
            raise_.weight,
            scale,
        )
        return output.view(*x.shape[:-1], -1)
    if is_joint or not layer.training:
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    output = base(x)
    return torch.addmm(
        output.flatten(0, -2),
        lower(dropout(x)).flatten(0, -2),
        raise_.weight.t(),
        alpha=scale,
    ).view(output.shape)


def _is_of_4_bits(base: nn.Module) -> bool:
    """Whether a layer has weights of 4 bits, as this project loads them."""
    if not isinstance(base, Linear4bit):
        return False
    state = base.weight.quant_state
    return state is not None and state.dtype == base.compute_dtype


class _LoraLinear(torch.autograd.Function):
    """x W + b + s · x A B with a frozen W, all products in its dtype.

    The output and the gradients are in the dtypes of x, A and B. With weights of 4 bits, which
    `state` describes, W is made anew in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        state: QuantState | None,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """x: (tokens, in); weight: (out, in), or packed; a: (rank, in); b: (out, rank)."""
        dtype = weight.dtype if state is None else state.dtype
        low_x, low_a, low_b = (tensor.to(dtype) for tensor in (x, a, b * scale))
        lowered = low_x @ low_a.t()
        output = _multiply(low_x, weight, state, bias)
        output.addmm_(lowered, low_b.t())
        ctx.save_for_backward(low_x, lowered, weight, low_a, low_b)
        ctx.state, ctx.scale, ctx.dtype, ctx.x_dtype = state, scale, a.dtype, x.dtype
        return output.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        x, lowered, weight, low_a, low_b = ctx.saved_tensors
        gradient = gradient.to(x.dtype)
        raised = gradient @ low_b
        to_x = None
        if ctx.needs_input_grad[0]:
            if ctx.state is not None:
                weight = dequantize_4bit(weight.view(-1, 1), ctx.state)
            to_x = gradient @ weight
            to_x = to_x.addmm_(raised, low_a).to(ctx.x_dtype)
        to_a = (raised.t() @ x).to(ctx.dtype)
        to_b = (gradient.t() @ lowered).to(ctx.dtype).mul_(ctx.scale)
        return to_x, None, None, None, to_a, to_b, None


def _multiply(
    x: torch.Tensor, weight: torch.Tensor, state: QuantState | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """Gives x W + b, without a gradient of W."""
    if state is None:
        return nn.functional.linear(x, weight, bias)
    return matmul_4bit(x, weight, state, bias=bias)  # type: ignore[no-any-return]
