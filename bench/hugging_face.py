"""Hugging Face models on our attention and on the library's own.

    python bench/hugging_face.py > bench/results/DATE-hugging-face.md
    python bench/hugging_face.py --length 1024 --only "Gemma 2,T5" --rounds 3

Models are randomly initialised: two layers of 8 heads of 64 (grouped: 8 query heads on 2 key heads), float32.
"Training" is a forward and a backward of one sequence; "generating" is greedy, 16 tokens behind a prompt of
that length. Both models are called in turn in one process. A ratio is the library's time divided by ours, the
median of the rounds; in **bold** where ours is slower.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers as hf
from transformers.utils import logging

from orchard_jit.commands.machine import facts
from orchard_jit.integrations.transformers import NAME
from orchard_jit.timing import Pair, Work, compare

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


def contestants(kind, config, reference):
    """The library's and ours, with the same weights."""
    for implementation in (reference, NAME):
        torch.manual_seed(0)
        yield kind._from_config(type(config)(**config.to_dict()), attn_implementation=implementation)


def training(model, ids) -> Work:
    def step():
        model.zero_grad()
        model(input_ids=ids)[0].square().mean().backward()

    return step


def generating(model, ids) -> Work:
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    return lambda: model.generate(ids, **options)


def cells(pair: Pair | None) -> list[str]:
    if pair is None:
        return [""] * 3
    ratio = f"{pair.ratio:.2f}"
    times = [f"{1e3 * seconds:.0f} ms" for seconds in (pair.theirs, pair.ours)]
    return [*times, ratio if pair.ratio >= 1 else f"**{ratio}**"]


def row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def table(length: int, only: tuple[str, ...], rounds: int) -> Iterator[str]:
    yield row("model", "against", "training, its", "ours", "ratio", "generating, its", "ours", "ratio")
    yield row(*["---"] * 8)
    ids = torch.randint(3, SIZES["vocab_size"], (1, length))
    for name, kind, config, reference in models(length):
        if not name.startswith(only):
            continue
        theirs, ours = contestants(kind, config, reference)
        trained = compare(training(ours.train(), ids), training(theirs.train(), ids), rounds)
        generated = None
        if theirs.can_generate():
            generated = compare(generating(ours.eval(), ids), generating(theirs.eval(), ids), rounds)
        yield row(name, reference, *cells(trained), *cells(generated))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--length", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--only", default="", metavar="MODEL[,…]", help="by how their names begin")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity_error()
    machine = facts() | {"transformers": hf.__version__}
    print("# Hugging Face models, on ours and on the library's own attention\n")
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end=".\n\n")
    print(*__doc__.split("\n\n")[2:], sep="\n\n", end="")
    for length in options.length:
        print(f"\n## Length {length}\n")
        for line in table(length, tuple(options.only.split(",")), options.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
