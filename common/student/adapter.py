"""The files of an adapter: LoRA's weights, tokenizer, model card, history."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.run.steps import ADAPTER
from common.run.storage import RunStorage

if TYPE_CHECKING:  # the report reads the history, without torch
    from transformers import PreTrainedTokenizerBase

HISTORY_FILE = f"{ADAPTER.folder}/history.jsonl"
"""The trainer's log, an entry per line."""
TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's files, first in the training's folder, then in the adapter's."""


def read_history(storage: RunStorage) -> list[dict[str, Any]]:
    """The trainer's log, without lines that are not JSON."""
    entries: list[dict[str, Any]] = []
    lines = storage.read_bytes(HISTORY_FILE).splitlines() if storage.exists(HISTORY_FILE) else []
    for line in lines:
        with suppress(ValueError, RecursionError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def write_adapter(
    training: Path,
    checkpoint: Path,
    tokenizer: "PreTrainedTokenizerBase",
    card: str,
    history: list[dict[str, Any]],
) -> Path:
    """Makes the adapter's folder inside `training`, from a checkpoint's weights."""
    target = training / ADAPTER.folder
    target.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (checkpoint / name).rename(target / name)
    if (training / TENSORBOARD).exists():
        (training / TENSORBOARD).rename(target / TENSORBOARD)
    tokenizer.save_pretrained(target)
    (target / "README.md").write_text(card, "utf-8")
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    (target / Path(HISTORY_FILE).name).write_text(lines, "utf-8")
    return target
