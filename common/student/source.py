"""Where a student comes from: a folder, a GGUF file or the hub; and what of it may be loaded."""

import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from transformers import AutoConfig, PreTrainedConfig

from common.errors import DistillError, InputError, SettingsError
from common.hub import is_transient
from common.sections import BUILTIN
from common.settings import Settings
from common.student.gguf import unpack_gguf

_BUILTIN_FOLDER = Path(__file__).parents[1] / "builtin" / "student"
_MISSING = re.compile(r"(no|have a) file named [^,]*safetensors")
"""What transformers says of a student without safetensors."""
_PICKLES = ("*.bin", "*.pt", "*.pth")
_NO_PICKLE = (
    "only safetensors are loaded, since a pickle (.bin) may run code; convert it, or set "
    "DISTILL_STUDENT__ALLOW_PICKLE=true"
)


def find_student(settings: Settings) -> str:
    """The hub name or folder of the student. Raises an InputError if a GGUF file is unusable."""
    name = settings.student.model
    if name == BUILTIN:
        return str(_BUILTIN_FOLDER)
    if not name.lower().endswith(".gguf"):
        return name
    try:
        return str(unpack_gguf(Path(name)))
    except Exception as error:  # a damaged file raises many types
        refuse_student(settings, error)


def make_options(settings: Settings) -> dict[str, Any]:
    """The arguments of each `from_pretrained` of the student: its revision, and no foreign code.

    Raises a SettingsError if `trust_remote_code` names another student.
    """
    student = settings.student
    revision = student.revision
    options: dict[str, Any] = {"revision": revision} if revision else {}
    if not student.trust_remote_code:
        return options | {"trust_remote_code": False}
    is_local = Path(student.model).exists()
    if student.trust_remote_code != (student.model if is_local else f"{student.model}@{revision}"):
        fix = (
            f"it should be the folder, {student.model!r}"
            if is_local
            else f"it should be '{student.model}@<commit>', with that commit as "
            f"DISTILL_STUDENT__REVISION (now {revision or 'not set'})"
        )
        raise SettingsError(
            f"DISTILL_STUDENT__TRUST_REMOTE_CODE={student.trust_remote_code!r} is another student; "
            + fix
        )
    return options | {"trust_remote_code": True}


def read_config(settings: Settings) -> PreTrainedConfig:
    """The student's configuration. Raises an InputError if it is missing or damaged."""
    folder, options = find_student(settings), make_options(settings)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, **options)
    except Exception as error:  # a damaged folder raises many types
        refuse_student(settings, error)
    return config


def count_positions(config: PreTrainedConfig) -> int:
    """The most tokens that a student takes, prompt and answer."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def check_source(settings: Settings) -> None:
    """Raises an InputError if the student's files are missing or may not be used so."""
    config, folder = read_config(settings), Path(find_student(settings))
    if folder.is_dir() and not [*folder.glob("*.safetensors")]:
        pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        if not pickles:
            refuse_student(settings, FileNotFoundError("the folder has no weights"))
        if not settings.student.allow_pickle:
            found = f"no file named model.safetensors, but {pickles[0]}"
            refuse_student(settings, FileNotFoundError(found))
    own = getattr(config, "quantization_config", None)
    if not own:
        return
    method = own.get("quant_method") if isinstance(own, dict) else own.quant_method
    is_changed = settings.student.quantization == "none"
    train = settings.train
    if is_changed or train.exports:
        export = f"EXPORT={','.join(train.export)}" if train.export else "MERGE=true"
        cause = "DISTILL_STUDENT__QUANTIZATION=none" if is_changed else f"DISTILL_TRAIN__{export}"
        raise InputError(
            f"DISTILL_STUDENT__MODEL={settings.student.model!r} is already quantised ({method}), "
            f"and {cause} needs its original weights; name the unquantised model"
        )


def refuse_student(settings: Settings, error: Exception) -> NoReturn:
    """Raises a DistillError if a retry may help, else an InputError."""
    if isinstance(error, DistillError):
        raise error
    reason = " ".join(str(error).split())[:300]
    name = f"DISTILL_STUDENT__MODEL={settings.student.model!r}"
    if is_transient(error):
        raise DistillError(
            f"{name} could not be fetched: {reason}; run again when the hub can be reached"
        ) from None
    if "trust_remote_code" in str(error):
        raise InputError(
            f"{name} brings its own code, which is not run unless "
            "DISTILL_STUDENT__TRUST_REMOTE_CODE names it: the folder, or <model>@<commit> beside "
            "DISTILL_STUDENT__REVISION=<commit>; read that code first"
        ) from None
    if _MISSING.search(str(error)):
        raise InputError(f"{name} cannot be loaded: {reason}; {_NO_PICKLE}") from None
    raise InputError(
        f"{name} cannot be loaded: {reason}; it may be 'builtin', a folder with "
        "a transformers model, a GGUF file, or a model of the Hugging Face hub"
    ) from None
