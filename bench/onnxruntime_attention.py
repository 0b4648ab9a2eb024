"""Our forward pass against ONNX Runtime's MultiHeadAttention, whose CPU kernel is a flash attention too.

    pip install onnxruntime onnx
    python bench/onnxruntime_attention.py

float32, (batch, length, heads, head dim) in memory, as its operator wants it. Both are called in turn in one
process; a ratio is its time divided by ours, the median of the rounds.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

import orchard_jit
from orchard_jit.timing import compare

HEADS = 4
LENGTHS = (128, 512, 2048)
HEAD_DIMS = (32, 64, 128)


def session(head_dim: int, causal: bool, threads: int) -> onnxruntime.InferenceSession:
    """A model of one operator, (1, length, heads * head_dim) -> the same."""
    shape = [1, "length", HEADS * head_dim]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "qkv"]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    node = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v"],
        ["out"],
        domain="com.microsoft",
        num_heads=HEADS,
        unidirectional=int(causal),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "attention", inputs, [output]), opset_imports=opsets, ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # which would slow us down
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def ratio(length: int, head_dim: int, causal: bool, threads: int) -> float:
    theirs = session(head_dim, causal, threads)
    arrays = {name: np.random.randn(1, length, HEADS * head_dim).astype(np.float32) for name in "qkv"}
    query, key, value = (
        torch.from_numpy(array).unflatten(-1, (HEADS, head_dim)).transpose(1, 2) for array in arrays.values()
    )

    def ours() -> torch.Tensor:
        return orchard_jit.flash_attention(query, key, value, causal=causal)

    def other() -> list[np.ndarray]:
        return theirs.run(None, arrays)

    mine = ours().transpose(1, 2).flatten(-2).numpy()
    np.testing.assert_allclose(mine, other()[0], rtol=1e-3, atol=1e-4)
    return compare(ours, other, rounds=11).ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    print(f"onnxruntime {onnxruntime.__version__}, {threads} threads, B1 H{HEADS} float32: full / causal\n")
    print("| S | " + " | ".join(f"D{head_dim}" for head_dim in HEAD_DIMS) + " |")
    print("| --- " * (len(HEAD_DIMS) + 1) + "|")
    for length in LENGTHS:
        cells = [
            " / ".join(f"{ratio(length, head_dim, causal, threads):.2f}" for causal in (False, True))
            for head_dim in HEAD_DIMS
        ]
        print(f"| {length} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
