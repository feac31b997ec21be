"""Students in GGUF files, as llama.cpp and Ollama use them."""

import contextlib
import hashlib
import io
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

_HEAD_BYTES = 1 << 20

log = logging.getLogger(__name__)


def unpack_gguf(file: Path) -> Path:
    """A folder in the cache with a file's weights in fp16, tokenizer and chat template.

    It is made once for each file, below HF_HOME. Raises what transformers raises if it cannot read
    the file, such as for an architecture that it does not know.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    target = Path(HF_HOME) / "distill" / _name(file)
    if target.exists():
        return target
    log.info("unpacking %s into %s", file, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name) / "student"
        _convert(file, folder)
        try:
            folder.rename(target)
        except OSError:  # another job was quicker
            if not target.exists():
                raise
    return target


def _name(file: Path) -> str:
    facts = file.stat()
    with file.open("rb") as opened:
        digest = hashlib.sha256(opened.read(_HEAD_BYTES))
    digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    return f"{file.stem}-{digest.hexdigest()[:16]}"


def _convert(file: Path, folder: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        _write(file, folder)


def _write(file: Path, folder: Path) -> None:
    source: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **source)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        dtype=torch.float16,
        quantization_config=GgufConfig(dequantize=True),
        **source,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
