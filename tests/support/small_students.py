"""Small random Llamas with each kind of tokenizer that is written as GGUF."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + "
    "eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_BOS_CHAT = "{{ bos_token }}" + _CHAT
_SPECIAL = ["<unk>", "<s>", "</s>"]
_SENTENCES = [
    "The dogs, which weren't asleep, didn't see 1,234 of the neighbours' cats in 2026.",
    "Correct the grammar; reply with the sentence only: les enfants jouent dans le jardin.",
    "Ich habe gestern ein Buch gekauft, und sie geht jeden Tag zur Schule.",
    "user assistant system: a text with words and more words, again and again.",
] * 4

BYTE_LEVEL: dict[str, tuple[bool, list[Any]]] = {
    "gpt-2": (False, [pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "smollm": (
        False,
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ],
    ),
    **{
        name: (
            is_whole,
            [
                pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
        )
        for name, is_whole in (("llama-bpe", True), ("smaug-bpe", False))
    },
}
SENTENCE_PIECE = ("always", "first", "never", "prepend")
KINDS = (*BYTE_LEVEL, *SENTENCE_PIECE)


def make_tokenizer(kind: str, chat: str | None = _CHAT) -> PreTrainedTokenizerFast:
    backend = _make_bytes(kind) if kind in BYTE_LEVEL else _make_pieces(kind)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", _SPECIAL.index("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat
    return tokenizer


def _make_bytes(kind: str) -> Tokenizer:
    is_whole, steps = BYTE_LEVEL[kind]
    tokenizer = Tokenizer(models.BPE(ignore_merges=is_whole))
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer


def _make_pieces(kind: str) -> Tokenizer:
    """As a Llama-2 tokenizer; `prepend` is its older form."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(
        _SENTENCES, trainers.BpeTrainer(vocab_size=250, show_progress=False)
    )
    found = json.loads(learned.to_str())["model"]
    names = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *found["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: id for id, name in enumerate(names)},
            merges=[tuple(merge) for merge in found["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(_SPECIAL)
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def make_student(folder: Path, kind: str = "gpt-2", **config: Any) -> PreTrainedTokenizerFast:
    """Writes a student whose embedding has room for four more tokens; gives its tokenizer."""
    tokenizer = make_tokenizer(kind, _BOS_CHAT)
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.3,
    }
    LlamaForCausalLM(LlamaConfig(**options | config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer
