"""The student's weights: their device and precision."""

import logging
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from common.errors import SettingsError, is_memory_error
from common.settings import Settings
from common.student.cpu import has_bf16, multiply_in_bf16
from common.student.lora import quicken
from common.student.source import find_student, make_options, refuse_student

log = logging.getLogger(__name__)


def check_device(settings: Settings) -> None:
    """Logs the device. Raises a SettingsError if a GPU is required and none can be used."""
    dtype = describe_dtype()
    if torch.cuda.is_available():
        log.info("on %s, in %s", torch.cuda.get_device_name(), dtype)
        return
    try:
        torch.cuda.init()
        reason = "none is visible"
    except (RuntimeError, AssertionError) as error:  # no driver, an old one, or a CPU build
        reason = str(error).split(". ")[0].splitlines()[0]
    if settings.student.require_gpu:
        raise SettingsError(
            f"DISTILL_STUDENT__REQUIRE_GPU=true, and no GPU can be used: {reason}; install CUDA's "
            "torch (build the image without TORCH=cpu) and NVIDIA's driver, and give the container "
            "the GPU"
        )
    log.info("on the CPU, in %s: no GPU can be used (%s)", dtype, reason)


def load_weights(
    settings: Settings, is_quantized: bool | None = None, is_exact: bool = False
) -> Any:
    """The base student, on the GPU if any.

    `is_quantized` replaces the setting. If it `is_exact`, no product on a CPU is in bf16.

    Of its generation settings only the end tokens stay: a repetition penalty, as some models have
    one, would change greedy decoding.

    Raises:
        InputError: it cannot be loaded.
        DistillError: the hub cannot be reached.
    """
    if is_quantized is None:
        is_quantized = settings.student.quantization == "nf4"
    model = _load(settings, is_quantized)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16 a forward pass without gradient repacks the weights for bf16:
            # later backward passes give no gradient, and results differ from other CPUs.
            module.support_avx512bf16_for_cpu = False
    if multiplies_in_bf16() and not is_exact:
        multiply_in_bf16(model)
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    return model


def _load(settings: Settings, is_quantized: bool) -> Any:
    transformers_logging.disable_progress_bar()
    dtype = choose_dtype()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            find_student(settings),
            dtype=dtype,
            quantization_config=quantization if is_quantized else None,
            device_map={"": 0 if torch.cuda.is_available() else "cpu"},
            use_safetensors=None if settings.student.allow_pickle else True,
            **make_options(settings),
            output_loading_info=True,
        )
    except Exception as error:  # a damaged folder raises many types
        if is_memory_error(error):
            raise
        refuse_student(settings, error)
    model, found = loaded
    unfit = [*sorted(found["missing_keys"]), *map(str, found["mismatched_keys"])]
    if unfit:
        refuse_student(settings, ValueError(f"its weights do not fit its config.json: {unfit[0]}"))
    return model


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The student with a LoRA adapter, which `disable_adapter()` switches off."""
    adapted = PeftModel.from_pretrained(model, str(folder))
    quicken(adapted)
    return adapted


def choose_dtype() -> torch.dtype:
    """The dtype of computation: bf16 on GPUs that have it, else fp16; fp32 on a CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_native else torch.float16


def multiplies_in_bf16() -> bool:
    """Whether products are in bf16 while all else is in fp32, see `common.student.cpu`."""
    return not torch.cuda.is_available() and has_bf16()


def describe_dtype() -> str:
    """The precision of the computation."""
    products = ", products in bfloat16" if multiplies_in_bf16() else ""
    return str(choose_dtype()).removeprefix("torch.") + products


def describe_weights(settings: Settings, is_quantized: bool) -> str:
    """The precision of the base weights and of the computation."""
    dtype = describe_dtype()
    quantization = settings.student.quantization
    return f"{quantization}, {dtype}" if is_quantized and quantization != "none" else dtype
