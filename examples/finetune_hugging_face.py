"""Fine-tune a Hugging Face model on this attention: one import and one argument are all that changes.

    pip install 'orchard_jit[transformers]'
    python examples/finetune_hugging_face.py                       # a minute on two cores
    python examples/finetune_hugging_face.py --attention sdpa      # on PyTorch's attention: the same losses

So that nothing is downloaded, the model is a small Llama with random weights whose tokens are bytes. With
weights of your own: `AutoModelForCausalLM.from_pretrained(name, attn_implementation="orchard_jit")`.

It learns what the functions of Python's standard library do, from pairs of a question and an answer. These
differ in length, so batches are padded, and the padding's mask goes to the kernels. In the end the model
answers questions, and `orchard_jit.report()` says which kernels ran, and how often.
"""

from __future__ import annotations

import argparse
import builtins
import inspect
import math
import os
import random
import time
from collections.abc import Iterable

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

import orchard_jit
import orchard_jit.integrations.transformers  # makes the name "orchard_jit" known to transformers

END = 0
"""A byte that ends an answer, and pads a batch: text has no other use for it."""
IGNORED = -100
"""The label of a place that teaches nothing, as transformers has it."""

Pair = tuple[bytes, bytes]
"""A question and its answer."""


def small_llama(attention: str) -> LlamaForCausalLM:
    """Four layers; 6 query heads share 2 key heads, which the kernels do not expand."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def questions() -> list[Pair]:
    """Names in Python's standard library, and the first sentence about each."""
    found = {}
    for home in (builtins, math, os, os.path, random, str, bytes, list, dict, set):
        for name, thing in inspect.getmembers(home, callable):
            sentence = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")
            if not name.startswith("_") and 0 < len(sentence) <= 200:
                found[f"{home.__name__}.{name}: ".encode()] = sentence.encode() + bytes([END])
    return sorted(found.items())


def batch_of(pairs: list[Pair]) -> dict[str, torch.Tensor]:
    """What the model wants: padded tokens, where they are, and what is to be learned: the answers alone."""
    rows = [torch.tensor([*question, *answer]) for question, answer in pairs]
    ids = pad_sequence(rows, batch_first=True, padding_value=END)
    places = torch.arange(ids.shape[1])
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    prompts = torch.tensor([len(question) for question, _ in pairs])[:, None]
    there = places < lengths
    return {
        "input_ids": ids,
        "attention_mask": there.long(),
        "labels": ids.masked_fill(~there | (places < prompts), IGNORED),
    }


def train(model: LlamaForCausalLM, pairs: list[Pair], steps: int, batch: int) -> list[float]:
    """The loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    draw = random.Random(0)
    losses = []
    started = time.perf_counter()
    for step in range(1, steps + 1):
        loss = model(**batch_of(draw.sample(pairs, batch))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step == 1 or step % max(steps // 10, 1) == 0:
            print(f"step {step:4}  loss {losses[-1]:.5f}  {time.perf_counter() - started:6.1f} s", flush=True)
    return losses


def text_of(tokens: Iterable[int]) -> str:
    """Without what ends it."""
    return bytes(tokens).rstrip(bytes([END])).decode(errors="replace")


def answer(model: LlamaForCausalLM, question: bytes) -> str:
    """What the model says, by its KV cache, the likeliest byte each time."""
    prompt = torch.tensor([[*question]])
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=100, do_sample=False
    )
    return text_of(tokens[0, prompt.shape[1] :].tolist())


def main() -> None:
    """Train, ask, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--attention", default="orchard_jit", help="or sdpa, or eager (default: orchard_jit)")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()

    torch.manual_seed(0)
    model, pairs = small_llama(options.attention), questions()
    print(f"{model.num_parameters() / 1e6:.1f} million parameters, {len(pairs)} questions\n")
    train(model, pairs, options.steps, options.batch)

    print()
    for question, expected in random.Random(1).sample(pairs, 3):
        print(f"{question.decode()}{answer(model, question)}")
        print(f"    wanted: {text_of(expected)}")
    print(f"\n{orchard_jit.report()}")


if __name__ == "__main__":
    main()
