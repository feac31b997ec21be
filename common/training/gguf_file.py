"""Llama-family students as GGUF files, for llama.cpp and Ollama.

The files are what llama.cpp's convert_hf_to_gguf.py makes of such a student, in f16 and in q8_0.
Weights are read and written one at a time.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    get_tensor_name_map,
)
from gguf.quants import quant_shape_to_byte_shape, quantize
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from common.training.gguf_vocabulary import read_vocabulary

F16, Q8_0 = GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
GGUF_FILES = {F16: "student-f16.gguf", Q8_0: "student-q8_0.gguf"}
_FILE_TYPES = {F16: LlamaFileType.MOSTLY_F16, Q8_0: LlamaFileType.MOSTLY_Q8_0}
_DTYPES = {GGMLQuantizationType.F32: np.float32, F16: np.float16, Q8_0: np.uint8}
_MODELS = ("llama", "mistral")
_BLOCK = 32
"""q8_0 has one scale for so many weights of a row."""
_ROPES = ("default", "linear", "llama3")

Weights = npt.NDArray[Any]


def check_config(config: PreTrainedConfig) -> None:
    """Raises a ValueError if the student's layers are not those of a Llama."""
    if config.model_type not in _MODELS:
        raise ValueError(f"it is a {config.model_type}, not one of {', '.join(_MODELS)}")
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            raise ValueError(f"its config.json has {name}")
    if config.hidden_act != "silu":
        raise ValueError(f"its activation is {config.hidden_act}, not silu")
    if (kind := config.rope_parameters["rope_type"]) not in _ROPES:
        raise ValueError(f"its rope_type is {kind}, not one of {', '.join(_ROPES)}")


@dataclass(frozen=True)
class _Tensor:
    """Weights under llama.cpp's name; `read` gives them in fp32."""

    name: str
    shape: list[int]
    read: Callable[[], Weights]


def write_gguf(
    source: Path,
    target: Path,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    kind: GGMLQuantizationType,
) -> None:
    """Writes the student of a transformers folder; `name` is what tools show.

    Raises:
        ValueError: llama.cpp would not compute what transformers does.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_config(config)
    writer = GGUFWriter(target, "llama")
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _add_config(writer, config)
    read_vocabulary(tokenizer, config.vocab_size).write(writer, tokenizer)
    with ExitStack() as stack:
        tensors = list(_list_tensors(source, config, stack))
        for tensor in tensors:
            own = _choose_kind(tensor, kind)
            shape, dtype = tensor.shape, np.dtype(_DTYPES[own])
            if own == Q8_0:
                shape = [*quant_shape_to_byte_shape(shape, own)]
            size = math.prod(shape) * dtype.itemsize
            writer.add_tensor_info(tensor.name, shape, dtype, size, raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(quantize(tensor.read(), _choose_kind(tensor, kind)))
    writer.close()


def _add_config(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    rope = config.rope_parameters
    writer.add_vocab_size(config.vocab_size)
    # beyond a sliding window, llama.cpp's Llama would look further back
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    writer.add_context_length(min(window, config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(_size_head(config))
    writer.add_value_length(_size_head(config))
    writer.add_rope_dimension_count(_size_head(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _size_head(config: PreTrainedConfig) -> int:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)


def _list_tensors(source: Path, config: PreTrainedConfig, stack: ExitStack) -> Iterator[_Tensor]:
    """The weights of the folder's safetensors, which stay open, and what llama.cpp adds."""
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for path in sorted(source.glob("*.safetensors")):
        file = stack.enter_context(safe_open(path, framework="pt"))
        for key in file.keys():  # noqa: SIM118, which is not a dictionary
            if key == "lm_head.weight" and config.tie_word_embeddings:
                continue
            name = names.get_name(key, try_suffixes=(".weight",))
            if name is None:
                raise ValueError(f"its weights {key} are not a Llama's")
            shape = file.get_slice(key).get_shape()
            yield _Tensor(name, shape, partial(_read, file, key, config))
    if config.rope_parameters["rope_type"] == "llama3":
        factors = _list_rope_factors(config)
        yield _Tensor("rope_freqs.weight", [len(factors)], lambda: factors)


def _read(file: Any, key: str, config: PreTrainedConfig) -> Weights:
    """Weights in fp32; llama.cpp rotates neighbours, transformers halves of a head."""
    weights: Weights = file.get_tensor(key).float().numpy()
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(key.split(".")[-2])
    if heads is None:
        return weights
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, weights.shape[1])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def _list_rope_factors(config: PreTrainedConfig) -> Weights:
    """What llama.cpp divides each frequency by, for Llama 3.1's scaling.

    The formula is transformers' `_compute_llama3_parameters`.
    """
    rope, size = config.rope_parameters, _size_head(config)
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    turns = rope["original_max_position_embeddings"] / waves
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    factors: Weights = 1 / ((1 - share) / rope["factor"] + share)
    return factors.astype(np.float32)


def _choose_kind(tensor: _Tensor, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """Vectors stay in fp32, as in llama.cpp; rows that no blocks fit stay in f16."""
    if len(tensor.shape) == 1:
        return GGMLQuantizationType.F32
    return F16 if tensor.shape[-1] % _BLOCK else kind
