"""A student on a CPU that computes in bf16: weights as it multiplies them, attention in fp32."""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

ATTENTION = "sdpa_fp32"


def has_bf16() -> bool:
    """Whether the CPU multiplies in bf16: AVX512-BF16 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def attend_in_fp32(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in fp32: torch's in bf16 is five times slower in its backward pass."""
    output, weights = sdpa_attention_forward(
        module, query.float(), key.float(), value.float(), *args, **kwargs
    )
    return output.to(query.dtype), weights


AttentionInterface.register(ATTENTION, attend_in_fp32)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def prepare_for_bf16(model: Any) -> None:
    """Replaces 4-bit layers by plain ones with the same values; attention computes in fp32.

    The values take four times the memory, and no time to unpack at each step.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _unpack(layer))


def _unpack(layer: Linear4bit) -> nn.Linear:
    plain = nn.Linear(
        layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
    )
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = layer.bias
    return plain
