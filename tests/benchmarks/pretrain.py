"""Makes the built-in student from scratch: `python -m tests.benchmarks.pretrain [FOLDER]`.

A 2 M-parameter Llama reads correct sentences of the built-in grammar and learns to copy what it is
given, mistakes included, under the chat template and the prompt of the grammar task. So the base
student can write a sentence down, but does not correct it: that is left to distillation. The
sentences of the built-in test split are held out. About 10 minutes on two cores.
"""

import copy
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common.builtin.lexicon import LANGUAGES
from common.builtin.mistakes import add_mistakes, make_rows
from common.builtin.sentences import join_words, make_sentence
from common.tasks.task import load_task

STEPS = 6000
BATCH_TOKENS = 1024
BLOCK_TOKENS = 128
PEAK_LEARNING_RATE = 2e-3
_MIXTURE = {
    "plain": 0.45,
    "letters": 0.10,
    "copy": 0.10,
    "copy mistakes": 0.25,
    "copy words": 0.10,
}
"""Kinds of documents and their shares."""
PROMPT_DROPOUT = 0.15
"""Of merges, in most correct prompts: the model learns to read words in unusual pieces.

Source: I. Provilkov et al., BPE-Dropout, ACL 2020.
"""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ '<|user|>' + message['content'] + '<|assistant|>' }}{% endif %}"
    "{% endfor %}"
)


def main(folder: Path) -> None:
    """Trains tokenizer and model, and saves both in `folder` (weights in bfloat16, 4 MB)."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            num_hidden_layers=4,
            num_attention_heads=6,
            intermediate_size=512,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    train(model, tokenizer)
    model.bfloat16().save_pretrained(folder)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,024 tokens over sentences, mistakes and the grammar task's prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, initial_alphabet=alphabet
    )
    documents = draw_documents(random.Random("tokenizer"), count=20_000)
    texts = (prompt + answer for prompt, answer, _ in documents)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE,
    )


def draw_documents(rng: random.Random, count: int | None = None) -> Iterator[tuple[str, str, bool]]:
    """Prompt, answer, and whether the answer has no mistakes; a plain sentence has no prompt."""
    held_out = {row["sentence"] for row in make_rows("test")}
    prompts = [load_task("gec").student.prompt, "Copy:\n{text}", "{text}"]
    drawn = 0
    while count is None or drawn < count:
        language = rng.choice(LANGUAGES)
        words = make_sentence(language, rng)
        if join_words(words) in held_out:
            continue
        drawn += 1
        kind = rng.choices(list(_MIXTURE), list(_MIXTURE.values()))[0]
        if kind == "plain":
            yield "", join_words(words), True
            continue
        if kind == "letters":
            word = rng.choice(words).form
            yield f"Join the letters:\n{' '.join(word)}", word, True
            continue
        text = join_words(words)
        if kind == "copy mistakes":
            text, _ = add_mistakes(words, language, rng)
        elif kind == "copy words":
            others = make_sentence(rng.choice(LANGUAGES), rng) + words
            text = " ".join(w.form for w in rng.sample(others, min(len(others), rng.randint(3, 9))))
        prompt = rng.choices(prompts, [0.7, 0.1, 0.2])[0]
        yield prompt.replace("{text}", text), text, kind != "copy mistakes"


def draw_blocks(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[torch.Tensor]:
    """Batches (BATCH_TOKENS / BLOCK_TOKENS, BLOCK_TOKENS) of documents laid end to end."""
    reader = copy.deepcopy(tokenizer)
    reader.backend_tokenizer.model.dropout = PROMPT_DROPOUT
    buffer: list[int] = []
    for prompt, answer, is_correct in draw_documents(rng):
        if prompt:
            # Mistakes are read as they stand: what is misspelt is to be copied misspelt.
            chosen = reader if is_correct and rng.random() < 0.7 else tokenizer
            buffer += chosen(f"<|user|>{prompt}<|assistant|>").input_ids
        buffer += [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
        if len(buffer) >= BATCH_TOKENS:
            yield torch.tensor(buffer[:BATCH_TOKENS]).view(-1, BLOCK_TOKENS)
            buffer = []


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """AdamW with a cosine schedule over `STEPS` batches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98))
    blocks = draw_blocks(tokenizer, random.Random("pretrain"))
    for step in range(STEPS):
        warmup = min(1.0, (step + 1) / 100)
        decay = 0.5 * (1 + math.cos(math.pi * step / STEPS))
        optimizer.param_groups[0]["lr"] = PEAK_LEARNING_RATE * warmup * max(decay, 0.02)
        batch = next(blocks)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step} of {STEPS}, loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "common/builtin/student"))
