"""The student's weights: their place, device and precision."""

import logging
from pathlib import Path
from typing import Any, NoReturn

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from common.errors import DistillError, InputError, SettingsError
from common.hub import is_transient
from common.settings import BUILTIN, Settings
from common.student.memory import is_memory_error
from common.tasks.task import Task

_BUILTIN_FOLDER = Path(__file__).parents[1] / "builtin" / "student"

log = logging.getLogger(__name__)


def find_student(settings: Settings) -> str:
    """The hub name or folder of the student."""
    name = settings.student.model
    return str(_BUILTIN_FOLDER) if name == BUILTIN else name


def check_device(settings: Settings) -> None:
    """Logs the device. Raises a SettingsError if a GPU is required and none can be used."""
    dtype = str(choose_dtype()).removeprefix("torch.")
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


def check_weights(settings: Settings) -> None:
    """Raises an InputError if the configuration or the weights' files are missing."""
    try:
        AutoConfig.from_pretrained(find_student(settings))
    except Exception as error:  # a damaged folder raises many types
        refuse_student(settings, error)
    folder = Path(find_student(settings))
    if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        refuse_student(settings, FileNotFoundError("the folder has no weights"))


def fingerprint_student(settings: Settings, task: Task) -> dict[str, Any]:
    """What a trained adapter depends on: the prompt and the base student."""
    return {
        "student.prompt": task.student.prompt,
        **settings.fingerprint("student", exclude=["require_gpu"]),
    }


def load_weights(settings: Settings, is_quantized: bool | None = None) -> Any:
    """The base student, on the GPU if any; `is_quantized` replaces the setting.

    Of its generation settings only the end tokens stay: a repetition penalty, as some models have
    one, would change greedy decoding.

    Raises:
        InputError: it cannot be loaded.
        DistillError: the hub cannot be reached.
    """
    if is_quantized is None:
        is_quantized = settings.student.quantization == "nf4"
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
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16 a forward pass without gradient repacks the weights for bf16:
            # later backward passes give no gradient, and results differ from other CPUs.
            module.support_avx512bf16_for_cpu = False
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    return model


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The student with a LoRA adapter, which `disable_adapter()` switches off."""
    return PeftModel.from_pretrained(model, str(folder))


def choose_dtype() -> torch.dtype:
    """The dtype of computation: bf16 on GPUs that have it, else fp16; fp32 on a CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def describe_weights(settings: Settings, is_quantized: bool) -> str:
    """The precision of the base weights and of the computation."""
    dtype = str(choose_dtype()).removeprefix("torch.")
    quantization = settings.student.quantization
    return f"{quantization}, {dtype}" if is_quantized and quantization != "none" else dtype


def refuse_student(settings: Settings, error: Exception) -> NoReturn:
    """Raises a DistillError if a retry may help, else an InputError."""
    reason = " ".join(str(error).split())[:300]
    name = f"DISTILL_STUDENT__MODEL={settings.student.model!r}"
    if is_transient(error):
        raise DistillError(
            f"{name} could not be fetched: {reason}; run again when the hub can be reached"
        ) from None
    raise InputError(
        f"{name} cannot be loaded: {reason}; it may be 'builtin', a folder with a transformers "
        "model, or a model of the Hugging Face hub"
    ) from None
