"""What only a GPU can show. `make bench-train` has the speed."""

import pytest
import torch
from safetensors.torch import load_file

from common.run.manifest import read_manifest
from common.run.steps import ADAPTER
from common.student.prompt import load_tokenizer
from jobs.train import main
from test_train import PAIRS, write_labels
from tests.benchmarks.train import (
    Clock,
    configure,
    make_random_rows,
    preparing_student,
    reset_memory,
    train_as_project,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def test_an_adapter_is_trained_in_bf16_and_kept_in_fp32(settings):
    own = settings(STUDENT__MODEL="builtin", TRAIN__EPOCHS=2, TRAIN__BATCH_SIZE=4)
    storage = write_labels(own, PAIRS)
    main(own)
    summary = read_manifest(storage, ADAPTER).summary
    assert summary["device"] == torch.cuda.get_device_name()
    assert summary["peak_gpu_bytes"] > 0
    weights = load_file(storage.path("adapter/adapter_model.safetensors"))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize(("preset", "most_gb"), [("default", 3.0), ("lean", 1.7)])
def test_tiny_llama_trains_in_little_memory(tmp_path, preset, most_gb):
    with preparing_student() as student:
        own = configure(student, preset, 8)
        tokenizer = load_tokenizer(own)
        reset_memory()
        train_as_project(own, tokenizer, make_random_rows(160, len(tokenizer)), tmp_path, Clock())
    assert torch.cuda.max_memory_allocated() / 1e9 <= most_gb
