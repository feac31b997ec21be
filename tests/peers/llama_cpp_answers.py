"""Tokens and greedy answers of llama.cpp, in the peers' environment: JSON in, JSON out.

Input: model, texts to encode, prompts (token ids) to answer with at most `limit` tokens. Keys,
values and the attention are in fp32, as in transformers on a CPU; the products of f16 weights are
llama.cpp's own, which rounds what it multiplies them with to f16.
"""

import json
import sys

import llama_cpp


def answer(model: llama_cpp.Llama, prompt: list[int], limit: int) -> list[int]:
    found: list[int] = []
    for token in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if llama_cpp.llama_vocab_is_eog(model._model.vocab, token) or len(found) == limit:
            break
        found.append(token)
    return found


def main() -> None:
    given = json.load(sys.stdin)
    prompts = given.get("prompts", [])
    model = llama_cpp.Llama(
        given["model"],
        vocab_only=not prompts,
        n_ctx=512,
        n_threads=1,
        n_threads_batch=1,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    texts = [t.encode() for t in given.get("texts", [])]
    tokens = [model.tokenize(text, add_bos=True, special=True) for text in texts]
    answers = [answer(model, prompt, given["limit"]) for prompt in prompts]
    json.dump({"tokens": tokens, "answers": answers}, sys.stdout)


main()
