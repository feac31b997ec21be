"""A student on a CPU that multiplies bf16 natively: products in bf16, all else in fp32."""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn


def has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively: AVX512-BF16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Bf16Linear(nn.Linear):
    """A frozen layer with weights in bf16, for inputs and outputs of any precision."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight: (out, in); bias: (out)."""
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias.bfloat16(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives x W + b, rounded to bf16, in the dtype of x."""
        return nn.functional.linear(x.bfloat16(), self.weight, self.bias).to(x.dtype)


def multiply_in_bf16(model: Any) -> None:
    """Gives the linear layers weights in bf16, which 4-bit layers need not unpack at each step.

    The head stays as it is: logits in bf16 have ties. The sum over the layers stays in fp32, too:
    rounding that is most of the loss of models in bf16.
    """
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        elif type(layer) is nn.Linear and layer is not head:
            weight = layer.weight.data
        else:
            continue
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Bf16Linear(weight, layer.bias))
