"""What training TinyLlama-1.1B should take of a GPU's memory, reckoned on a CPU.

    python -m tests.benchmarks.activations

Students of TinyLlama's width with one and with two layers make one forward pass in bf16 over a
batch of eight, and what autograd keeps of it is added up; a layer's part, times 22, is that of the
whole. To it come the 4-bit weights, and 16 bytes for each of LoRA's (itself, its gradient, Adam's
two), all in fp32. Not counted: what one operation needs for itself, some 0.1 to 0.2 GB.
"""

import tempfile
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from common.settings import Settings
from common.student.prompt import load_tokenizer
from common.student.weights import load_weights
from common.tasks.task import load_task
from common.training.lora import add_adapter
from common.training.objectives.supervised import Supervised
from tests.benchmarks.measure import print_table
from tests.benchmarks.train import TINY_LLAMA, configure, make_random_rows

_ROWS = 8
_LAYERS = int(TINY_LLAMA["num_hidden_layers"])


def measure(settings: Settings) -> dict[str, float]:
    """Bytes of activations, of frozen weights, and of LoRA with gradient and optimizer."""
    with mock.patch("common.student.weights.choose_dtype", return_value=torch.bfloat16):
        model = add_adapter(settings, load_weights(settings))
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    if settings.train.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    tokenizer = load_tokenizer(settings)
    objective = Supervised(load_task("gec"), tokenizer)
    batch = objective.collate(list(make_random_rows(_ROWS, len(tokenizer))))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        objective.sum_loss(model, batch)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return {
        "activations": sum(t.untyped_storage().nbytes() for t in kept.values()),
        "weights": sum(p.numel() * p.element_size() for p in frozen),
        "LoRA": sum(p.numel() for p in trained) * 16,
    }


def estimate(preset: str) -> dict[str, float]:
    """Bytes of the whole student, by kind."""
    figures = []
    for layers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            config = LlamaConfig(**TINY_LLAMA | {"num_hidden_layers": layers})
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
            load_tokenizer(configure("builtin", preset, _ROWS)).save_pretrained(folder)
            figures.append(measure(configure(folder, preset, _ROWS)))
    one, two = figures
    return {name: one[name] + (_LAYERS - 1) * (two[name] - one[name]) for name in one}


def main() -> None:
    rows = []
    for preset in ("default", "lean", "reference"):
        figures = estimate(preset)
        gigabytes = {name: f"{value / 1e9:.2f}" for name, value in figures.items()}
        rows.append({"preset": preset, **gigabytes, "sum": f"{sum(figures.values()) / 1e9:.2f}"})
    print_table("GB for TinyLlama-1.1B, batch 8, reckoned on a CPU", rows)


if __name__ == "__main__":
    main()
