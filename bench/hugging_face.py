"""Hugging Face models on our attention and on the library's own, called in turn.

    python bench/hugging_face.py [--length 1024] [--rounds 5]

Models are randomly initialised: two layers of 8 heads of 64. A row is one step of training (forward and
backward) of one sequence, and greedy decoding behind a prompt of that length.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers as hf
from transformers.utils import logging

import orchard_jit.integrations.transformers

TOKENS = 16
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def models(length):
    """Name, class, configuration, and what ours is compared with."""
    longest = {"max_position_embeddings": 2 * length}
    window = {"sliding_window": 128}
    yield "Llama", hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES, **longest), "sdpa"
    yield "Qwen3, grouped heads", hf.Qwen3ForCausalLM, hf.Qwen3Config(**GROUPED, **longest), "sdpa"
    yield (
        "Mistral, window 128",
        hf.MistralForCausalLM,
        hf.MistralConfig(**GROUPED, **longest, **window),
        "sdpa",
    )
    yield (
        "Gemma 2, soft cap and window 128",
        hf.Gemma2ForCausalLM,
        hf.Gemma2Config(**GROUPED, **longest, **window, query_pre_attn_scalar=64, **IDS),
        "eager",
    )
    yield (
        "ModernBERT, window 128",
        hf.ModernBertForMaskedLM,
        hf.ModernBertConfig(
            **SIZES, **longest, **IDS, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2
        ),
        "sdpa",
    )
    yield (
        "T5 encoder, learned bias",
        hf.T5EncoderModel,
        hf.T5Config(vocab_size=1024, d_model=512, d_kv=64, d_ff=1024, num_layers=2, num_heads=8),
        "sdpa",
    )


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def race(functions, rounds):
    """The median time of each, called in turn; the first round does not count."""
    times = [[seconds(function) for function in functions] for _ in range(rounds + 1)]
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]


def contestants(kind, config, reference):
    for implementation in (reference, orchard_jit.integrations.transformers.NAME):
        torch.manual_seed(0)
        yield kind._from_config(type(config)(**config.to_dict()), attn_implementation=implementation)


def training(model, ids):
    def step():
        model.zero_grad()
        model(input_ids=ids)[0].square().mean().backward()

    return step


def decoding(model, ids):
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    return lambda: model.generate(ids, **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    ids = torch.randint(3, 1024, (1, arguments.length))
    print(
        f"float32, length {arguments.length}, {torch.get_num_threads()} threads, "
        f"transformers {hf.__version__}\n"
    )
    print("| model | compared with | training, its | ours | | prompt and 16 tokens, its | ours | |")
    print("|---|---|---|---|---|---|---|---|")
    for name, kind, config, reference in models(arguments.length):
        pair = list(contestants(kind, config, reference))
        theirs, ours = race([training(model.train(), ids) for model in pair], arguments.rounds)
        row = f"| {name} | {reference} | {theirs * 1e3:.0f} ms | {ours * 1e3:.0f} ms | {theirs / ours:.2f}x |"
        if pair[0].can_generate():
            theirs, ours = race(
                [decoding(model.eval(), ids) for model in pair], max(arguments.rounds // 2, 1)
            )
            row += f" {theirs * 1e3:.0f} ms | {ours * 1e3:.0f} ms | {theirs / ours:.2f}x |"
        else:
            row += " | | |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
