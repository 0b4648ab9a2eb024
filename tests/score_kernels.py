"""Score expressions alone, without an attention kernel around them: compiled for one backend, and called."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from software_mac.metal import Library, compile_source

from orchard_jit import selection
from orchard_jit.jit import recipe
from orchard_jit.jit.render import Rendering
from orchard_jit.score import ScoreMod
from orchard_jit.variant import Variant

LANES = 16
"""Queries that share a batch, a head and a key: as many as the widest vector has."""
_NAMES = (
    *("Coordinates", "ScoreInputs", "modify", "slope", "visible"),
    *("kModifiesScore", "kMasksScore", "modifies_score", "masks_score", "score_inputs"),
)


@dataclass(frozen=True)
class Points:
    """Where scores lie. What has one column is the same for all queries of a group."""

    score: np.ndarray
    b: np.ndarray
    h: np.ndarray
    q: np.ndarray
    kv: np.ndarray
    q_len: np.ndarray
    kv_len: np.ndarray

    @property
    def groups(self) -> int:
        return len(self.score)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The values of each point, by the names that they have in expressions."""
        return {
            name: torch.tensor(np.broadcast_to(values, self.score.shape))
            for name, values in vars(self).items()
        }


@dataclass(frozen=True)
class Results:
    modified: np.ndarray
    slope: np.ndarray
    visible: np.ndarray


def points(seed: int, groups: int = 16, heads_differ: bool = False) -> Points:
    random = np.random.default_rng(seed)

    def whole(low: int, high: int, columns: int = 1) -> np.ndarray:
        return random.integers(low, high, (groups, columns))

    return Points(
        score=random.normal(0, 4, (groups, LANES)).astype(np.float32).astype(float),
        b=whole(0, 3),
        h=whole(0, 4, LANES if heads_differ else 1),
        q=whole(0, 24) + np.arange(LANES),
        kv=whole(0, 40),
        q_len=whole(1, 40),
        kv_len=whole(1, 40),
    )


def points_with(scores: Sequence[float]) -> Points:
    """A group for each of the scores."""
    scores = np.asarray(scores, np.float32).astype(float)
    return replace(points(0, len(scores)), score=np.repeat(scores[:, None], LANES, 1))


def cpu(mods: Sequence[ScoreMod], dtype: str, arch: str, at: Points, work: Path) -> list[Results]:
    """The results of each score function; all of them are one library."""
    recipes = [recipe.for_variant(_variant(mod, "cpu", dtype, arch)) for mod in mods]
    recipe.write_files(recipes[0], work)
    for i, made in enumerate(recipes):
        (work / f"score{i}.h").write_text(_numbered(made.files["score.h"], i))
    (work / "cases.cpp").write_text(
        "\n".join([_CPU_START, *(_CPU_CASE % {"i": i} for i in range(len(mods)))])
    )
    library = work / "cases.so"
    compiler = [*os.environ.get("CXX", "g++").split(), *recipes[0].compile_flags]
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi")
    command = [*compiler, *warnings, "-shared", "-fPIC", "-o", library, work / "cases.cpp"]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    return [_call(loaded[f"run{i}"], mod, at) for i, mod in enumerate(mods)]


def _variant(mod: ScoreMod, backend: str, dtype: str, arch: str) -> Variant:
    return selection.select(
        backend=backend, arch=arch, kernel="backward", dtype=dtype, head_dim=64, head_dim_v=64, score=mod.spec
    )


def _numbered(score_header: str, i: int) -> str:
    """With names of its own, so that several fit into one library."""
    return "".join(f"#undef {name}\n#define {name} {name}{i}\n" for name in _NAMES) + score_header


_CPU_START = """
#include "params.h"

void fill(OrchardCall& call, void* const* arrays, const int64_t* layouts, int64_t count,
          const double* scalars) {
  for (int64_t i = 0; i < count; i++) {
    call.arrays[i].data = arrays[i];
    __builtin_memcpy(&call.params.arrays[i], layouts + 8 * i, sizeof(OrchardArray));
  }
  for (int i = 0; i < ORCHARD_MAX_SCALARS; i++) call.scalars[i] = scalars[i];
}
"""
_CPU_CASE = """
#include "score%(i)d.h"
ORCHARD_EXPORT void run%(i)d(void* const* arrays, const int64_t* layouts, int64_t count,
                         const double* scalars, int64_t groups, const double* scores, const int64_t* batch,
                         const int64_t* heads, int64_t head_columns, const int64_t* queries,
                         const int64_t* keys, const int64_t* query_lengths, const int64_t* key_lengths,
                         double* results) {
  using namespace orchard;
  OrchardCall call = {};
  fill(call, arrays, layouts, count, scalars);
  const ScoreInputs inputs(call);
  const int64_t all = groups * 16;
  for (int64_t i = 0; i < all; i += kLanes) {
    const int64_t group = i / 16;
    Vector score;
    IntegerVector query, head;
    for (int lane = 0; lane < kLanes; lane++) {
      score[lane] = scores[i + lane];
      query[lane] = queries[i + lane];
      head[lane] = heads[head_columns == 1 ? group : i + lane];
    }
    const auto evaluate = [&](const auto& at) {
      const Vector modified = modify(inputs, score, at), slopes = slope(inputs, score, at);
      const IntegerVector seen = visible(inputs, at);
      for (int lane = 0; lane < kLanes; lane++) {
        results[i + lane] = modified[lane];
        results[all + i + lane] = slopes[lane];
        results[2 * all + i + lane] = seen[lane];
      }
    };
    const Integer b = batch[group], key = keys[group];
    const Integer query_length = query_lengths[group], key_length = key_lengths[group];
    if (head_columns == 1) {
      evaluate(Coordinates<Integer>{b, Integer(head[0]), query, key, query_length, key_length});
    } else {
      evaluate(Coordinates<IntegerVector>{b, head, query, key, query_length, key_length});
    }
  }
}
"""


def _layouts(mod: ScoreMod) -> np.ndarray:
    """OrchardArray of each array."""
    layouts = np.ones((len(mod.arrays), 2, 4), np.int64)
    for layout, array in zip(layouts, mod.arrays, strict=True):
        layout[0, : array.dim()] = array.shape
        layout[1, : array.dim()] = array.stride()
    return layouts


def _call(run: Any, mod: ScoreMod, at: Points) -> Results:
    pointers = (ctypes.c_void_p * 8)(*(array.data_ptr() for array in mod.arrays))
    scalars = np.array([*mod.scalars, *[0.0] * (8 - len(mod.scalars))])
    results = np.full((3, *at.score.shape), np.nan)

    def pointer(array: np.ndarray) -> ctypes.c_void_p:
        assert array.flags.c_contiguous
        return ctypes.c_void_p(array.ctypes.data)

    layouts = _layouts(mod)
    run(
        *(pointers, pointer(layouts), ctypes.c_int64(len(mod.arrays)), pointer(scalars)),
        *(ctypes.c_int64(at.groups), pointer(at.score), pointer(at.b), pointer(at.h)),
        *(
            ctypes.c_int64(at.h.shape[1]),
            pointer(at.q),
            pointer(at.kv),
            pointer(at.q_len),
            pointer(at.kv_len),
        ),
        pointer(results),
    )
    assert set(np.unique(results[2])) <= {-1.0, 0.0}
    return Results(results[0], results[1], results[2] != 0)


def metal(mods: Sequence[ScoreMod], dtype: str, at: Points) -> list[Results]:
    """The results of each score function on the software Mac, which checks every access."""
    source = []
    for i, mod in enumerate(mods):
        variant = _variant(mod, "metal", dtype, "apple9")
        texts = Rendering(*_METAL_FILES, variant=variant.to_json(), abi_version=recipe.ABI_VERSION)
        types = [_METAL_TYPES[array.dtype] for array in mod.arrays]
        buffers = "".join(
            f", const device {type_}* array{j} [[buffer({j + 5})]]" for j, type_ in enumerate(types)
        )
        arrays = "".join(f", array{j}" for j in range(len(types)))
        if i == 0:
            source.append(_METAL_START % texts)
        header = texts["score.h"].replace(texts["expression.h"], "") if i else texts["score.h"]
        source.append(_numbered(header, i))
        source.append(_METAL_CASE % {"i": i, "buffers": buffers, "arrays": arrays})
    library = Library(compile_source("\n".join(source), "scores", checked=True))
    return [_dispatch(library, f"run{i}", mod, at) for i, mod in enumerate(mods)]


_METAL_FILES = ("metal/score.h.j2", "metal/expression.h", "params.h.j2")
_METAL_TYPES = {
    torch.float32: "float",
    torch.float16: "half",
    torch.bfloat16: "bfloat",
    torch.int32: "int",
    torch.int64: "long",
    torch.bool: "uchar",
}
_METAL_START = """
#include <metal_stdlib>
using namespace metal;
#define UNROLL _Pragma("clang loop unroll(full)")
%(params.h)s
kernel void measure(device int* bytes [[buffer(0)]]) { *bytes = int(sizeof(OrchardParams)); }
"""
_METAL_CASE = """
kernel void run%(i)d(const device float* scores [[buffer(0)]], const device int* places [[buffer(1)]],
                     constant OrchardParams& params [[buffer(2)]],
                     constant OrchardNumbers& numbers [[buffer(3)]],
                     device float* results [[buffer(4)]]%(buffers)s,
                     uint thread_index [[thread_position_in_grid]], uint all [[threads_per_grid]]) {
  const int i = int(thread_index);
  const device int* place = places + 6 * i;
  const ScoreInputs inputs = score_inputs(params, numbers%(arrays)s);
  const Coordinates at = {place[0], place[1], place[2], place[3], place[4], place[5]};
  results[i] = modify(inputs, scores[i], at);
  results[int(all) + i] = slope(inputs, scores[i], at);
  results[2 * int(all) + i] = visible(inputs, at) ? 1 : 0;
}
"""


def _dispatch(library: Library, kernel: str, mod: ScoreMod, at: Points) -> Results:
    places = [
        np.broadcast_to(x, at.score.shape).ravel() for x in (at.b, at.h, at.q, at.kv, at.q_len, at.kv_len)
    ]
    layouts = _layouts(mod).tobytes().ljust(8 * 64, b"\0")
    params_bytes = np.zeros(1, np.int32)
    library.dispatch("measure", 1, 1, {0: params_bytes})
    params = bytes(params_bytes[0] - len(layouts)) + layouts  # whose last field they are
    numbers = np.array([1, 1, *mod.scalars, *[0.0] * (8 - len(mod.scalars))], np.float32)
    results = np.full((3, *at.score.shape), np.nan, np.float32)
    arrays = [array.as_strided((_extent(array),), (1,)).view(torch.uint8).numpy() for array in mod.arrays]
    scores, places = at.score.astype(np.float32), np.stack(places, 1).astype(np.int32)
    buffers = (scores, places, params, numbers.tobytes(), results, *arrays)
    library.dispatch(kernel, at.score.size, at.score.size, dict(enumerate(buffers)))
    return Results(results[0].astype(float), results[1].astype(float), results[2] != 0)


def _extent(array: torch.Tensor) -> int:
    """How many elements of memory it spans."""
    return 1 + sum((size - 1) * stride for size, stride in zip(array.shape, array.stride(), strict=True))
