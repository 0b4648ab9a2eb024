"""The language of score functions: what it accepts, what it refuses, and how it is written down."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import score_expressions
import torch
from hypothesis import given, settings

from orchard_jit import selection
from orchard_jit.jit import files, recipe, render
from orchard_jit.score import ScoreMod, alibi, softcap
from orchard_jit.score.source import Source
from orchard_jit.score.spec import Spec

SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
IDS = torch.zeros(2, 8, dtype=torch.int32)


def stages(mod):
    return [score for score, _ in json.loads(mod.spec)["stages"]]


def mask(mod):
    return json.loads(mod.spec)["mask"]


def variant(spec, kernel="backward", backend="cpu", arch="x86-64-v3"):
    return selection.select(
        backend=backend, arch=arch, kernel=kernel, dtype="float32", head_dim=64, head_dim_v=64, score=spec
    )


# What is accepted.


def test_a_spec_has_positions_in_place_of_names():
    mod = ScoreMod("score + slope[h] * (kv - q)", slope=SLOPES)
    assert json.loads(mod.spec) == {
        "arrays": [["float32", 1]],
        "mask": None,
        "scalars": [],
        "stages": [["score + array0[h] * (kv - q)", None]],
    }
    assert mod.arrays == (SLOPES,)


def test_names_and_the_order_of_arguments_make_no_difference():
    one = ScoreMod("a*score+b2*kv", mask="ids[b,q]==ids[b,kv]", a=1.5, b2=2, ids=IDS)
    other = ScoreMod("x * score + (y * kv)", mask="i[b, q] == (i[b, kv])", y=3, i=IDS, x=0.5)
    assert one.spec == other.spec
    assert (one.scalars, other.scalars) == ((1.5, 2.0), (0.5, 3.0))


def test_a_function_that_changes_nothing_has_an_empty_spec():
    assert ScoreMod().spec == ScoreMod("(score)").spec == ""


def test_types_of_numbers_make_a_difference():
    assert ScoreMod("score * x", x=2).spec != ScoreMod("score * x", x=2.0).spec
    assert ScoreMod("score * x", x=2.0).spec == ScoreMod("score * x", x=-7.0).spec


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("2*score", "2.0 * score"),
        ("score if q>kv else 0", "where(kv < q, score, 0.0)"),
        ("max(score, q, 1)", "max(max(score, q), 1.0)"),
        ("-score**2", "-score ** 2"),
        ("(-score)**2", "(-score) ** 2"),
        ("score**-3", "1.0 / score ** 3"),
        ("score**1 + q**0", "score + 1.0"),
        ("score-(q-kv)-1", "score - (q - kv) - 1.0"),
        ("score/(q/kv)", "score / (q / kv)"),
        ("score*where(0<q<=kv or not b==h,1,2)", "score * where(0 < q and q <= kv or not b == h, 1, 2)"),
        ("score\n  + 0x10", "score + 16.0"),
        ("score * (q // 2 % 3)", "score * (q // 2 % 3)"),
        ("score * (q // (2 % 3))", "score * (q // (2 % 3))"),
        ("abs(q) * score", "abs(q) * score"),
    ],
)
def test_canonical_text(text, canonical):
    assert stages(ScoreMod(text)) == [canonical]


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("q - kv <= 128 and kv <= q", "q - kv <= 128 and kv <= q"),
        ("(b < 1 or h < 2) and (q < 3 and kv < 4)", "(b < 1 or h < 2) and (q < 3 and kv < 4)"),
        ("not (q < 3 and kv < 4)", "not (q < 3 and kv < 4)"),
        ("(q < 3) == (kv < 3) != (b < 1)", "(q < 3) == (kv < 3) and (kv < 3) != (b < 1)"),
        ("q < kv / 2", "q < kv / 2.0"),
    ],
)
def test_canonical_masks(text, canonical):
    assert mask(ScoreMod(mask=text)) == canonical


@settings(deadline=None)
@given(score_expressions.floats(4), score_expressions.booleans(4))
def test_a_spec_reads_back_as_it_was_written(score, hides):
    text = f"{score} {hides}"
    values = {name: value for name, value in score_expressions.VALUES.items() if name in text}
    spec = ScoreMod(score.text, mask=hides.text, **values).spec
    assert str(Spec.read(spec)) == spec


def test_composition():
    mod = (
        softcap(30.0).then(alibi(SLOPES)).then(ScoreMod(mask="kv <= q + n", n=3)).then(ScoreMod(mask="b < 1"))
    )
    assert stages(mod) == [
        "scalar0 * tanh(score / scalar0)",
        "score - array0[h] * abs(q + kv_len - q_len - kv)",
    ]
    assert mask(mod) == "kv <= q + scalar1 and b < 1"
    assert mod.scalars == (30.0, 3.0)
    assert mod.arrays == (SLOPES,)
    assert ScoreMod().then(softcap(2.0)).then(ScoreMod()).spec == softcap(1.0).spec


def test_alibi():
    assert stages(alibi(SLOPES, lower_right=False)) == ["score - array0[h] * abs(q - kv)"]
    assert stages(alibi(SLOPES.repeat(2, 1)))[0].startswith("score - array0[b, h]")
    with pytest.raises(ValueError, match=r"slopes must be \(heads\) or \(batch, heads\)"):
        alibi(torch.ones(2, 2, 2))


def test_it_is_a_value():
    mod = ScoreMod("score + slope[h]", slope=SLOPES)
    with pytest.raises(AttributeError):
        mod.spec = ""
    assert pickle.loads(pickle.dumps(mod)).spec == copy.deepcopy(mod).spec == mod.spec
    assert not mod.requires_grad
    assert ScoreMod("score + slope[h]", slope=SLOPES.clone().requires_grad_()).requires_grad


# What is refused.


@pytest.mark.parametrize(
    "text, place, message",
    [
        ("score + slop[h]", "slop", "there is no name slop; did you mean slope?"),
        ("tann(score)", "tann", "there is no function tann; did you mean tanh?"),
        ("score + zzz", "zzz", "there is no name zzz\n"),
        ("slope", "slope", r"slope is a tensor: index it, as slope[...]"),
        ("tanh * 2", "tanh", "tanh is a function: call it"),
        ("slope[h, q]", "slope[h, q]", "slope takes 1 index, got 2"),
        ("slope[score]", "score", "an index must be an int, this is of type float"),
        ("slope[where(score > 0, 1, 2)]", "where(score > 0, 1, 2)", "an index cannot depend on the score"),
        ("score[h]", "score", "only a tensor can be indexed"),
        ("score if q else kv", "q", "a condition takes a bool"),
        ("(q > kv) + 1", "q > kv", "this is a bool, not a number"),
        (
            "where(q > kv, 1, q > 1)",
            "where(q > kv, 1, q > 1)",
            "one side is of type int, the other of type bool",
        ),
        ("score // 2", "score", "// and % take ints"),
        ("q / 0", "0", "a division by zero"),
        ("score ** 0.5", "0.5", "this exponent is not accepted"),
        ("score ** q", "q", "this exponent is not accepted"),
        ("score ** 65", "65", "this exponent is not accepted"),
        ("q is kv", "q is kv", "this comparison is not accepted"),
        ("max(score)", "max(score)", "max takes 2 arguments or more, got 1"),
        ("exp(score, 2)", "exp(score, 2)", "exp takes 1 argument, got 2"),
        ("2147483648 * score", "2147483648", "the largest int is 2147483647"),
        ("1e39 * score", "1e39", "the largest float is 3.4"),
        ("score +", None, "not an expression"),
        ("score) * (2", ")", "not an expression"),
        ("score == (q == kv)", "q == kv", "bools compare by == and != with bools alone"),
        ("score > True", "True", "True is not accepted"),
        ("2j", "2j", "2j is not accepted"),
        ("[score]", "[score]", "this is not accepted"),
    ],
)
def test_an_error_shows_the_place(text, place, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        ScoreMod(text, slope=SLOPES)
    first, quoted, carets = str(caught.value).split("\n")[:3]
    assert message.rstrip("\n") in first
    assert quoted == f"    {text}"
    if place is not None:
        start = carets.index("^") - 4
        assert text[start : start + carets.count("^")] == place


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "score.__class__",
        "().__class__.__bases__",
        "(lambda: 1)()",
        "score; }",
        'score); system("true"); (score',
        "score // comment",
        "score /* comment */",
        "score # comment",
        'score + R"(x)"',
        "score\\\n",
        "score\x00",
        "ſcore",
        "ｓcore",
        "score \u202e",
        "score := 1",
        "f'{score}'",
        "`score`",
        "score @ q",
        "score if q > 1 else (yield)",
        "await q",
        "[score for score in q]",
        "max(*q)",
        "exp(x=score)",
        "slope[0:1]",
        "slope[...]",
        "~q",
        "q ^ kv",
        "q in kv",
        "array0[h]",
        "scalar0",
        "inputs",
        "at",
        "..",
        "",
        "(" * 300 + "score" + ")" * 300,
        "-" * 5000 + "score",
        "not " * 2000 + "(q > 1)",
        "abs(" * 150 + "score" + ")" * 150,
        " + ".join(["score"] * 400),
        "score" * 4000,
        "9" * 5000,
        "score ** 64 ** 64",
        "q < " * 300 + "kv",
    ],
    ids=lambda text: ascii(text[:20]),
)
@pytest.mark.parametrize("where", ("score", "mask", "derivative"))
def test_what_is_no_expression_is_refused(text, where):
    with pytest.raises((ValueError, TypeError), match=where):
        ScoreMod(**{where: text})


def test_a_mask_is_a_bool_without_the_score():
    with pytest.raises(ValueError, match="mask: a mask cannot use the score"):
        ScoreMod(mask="score > 0")
    with pytest.raises(TypeError, match="mask must be a bool"):
        ScoreMod(mask="q - kv")
    with pytest.raises(TypeError, match="score must be a number"):
        ScoreMod("q < kv")


@pytest.mark.parametrize(
    "error, message, values",
    [
        (TypeError, "x must be a tensor or a number, got str", {"x": "1"}),
        (TypeError, "x must be a tensor or a number, got NoneType", {"x": None}),
        (ValueError, "x must be an int from -16777216 to 16777216", {"x": 2**24 + 1}),
        (ValueError, "x: a tensor must have 1 to 4 dimensions, got 0", {"x": torch.tensor(1.0)}),
        (ValueError, "x: a tensor must have 1 to 4 dimensions, got 5", {"x": torch.ones(1, 1, 1, 1, 1)}),
        (ValueError, "x must be a dense tensor that has elements", {"x": torch.ones(0)}),
        (ValueError, "x must be a dense tensor", {"x": torch.ones(3).to_sparse()}),
        (
            TypeError,
            "x: a tensor must be float32, .* got complex64",
            {"x": torch.ones(1, dtype=torch.complex64)},
        ),
        (ValueError, "x holds values beyond 32 bits", {"x": torch.tensor([2**31])}),
        (ValueError, "'tanh' cannot name a value", {"tanh": 1}),
        (ValueError, "'kv' cannot name a value", {"kv": 1}),
        (ValueError, "'if' cannot name a value", {"if": 1}),
        (ValueError, "'a b' cannot name a value", {"a b": 1}),
        (ValueError, "'ſ' cannot name a value", {"ſ": 1}),
        (ValueError, "y does not occur in the expressions", {"x": 1, "y": 2}),
    ],
    ids=lambda x: str(x)[:30],
)
def test_values_are_checked(error, message, values):
    with pytest.raises(error, match=message):
        ScoreMod("score + x", **values)


def test_there_are_limits():
    names = [f"x{i}" for i in range(9)]
    with pytest.raises(ValueError, match="at most 8 scalars, this one has 9"):
        ScoreMod(" + ".join(names), **dict.fromkeys(names, 1.0))
    with pytest.raises(ValueError, match="at most 8 tensors, this one has 9"):
        ScoreMod(" + ".join(f"{name}[h]" for name in names), **dict.fromkeys(names, SLOPES))
    mod = ScoreMod("score * 2")
    for _ in range(7):
        mod = mod.then(ScoreMod("score * 2"))
    with pytest.raises(ValueError, match="at most 8 functions after one another"):
        mod.then(ScoreMod("score * 2"))
    with pytest.raises(TypeError, match="then takes a ScoreMod, got str"):
        mod.then("score")
    with pytest.raises(ValueError, match="cap must be positive"):
        softcap(0.0)


@pytest.mark.parametrize(
    "spec",
    [
        "score",
        "[]",
        "{}",
        "null",
        "[" * 5000,
        ScoreMod("score * 2").spec + " ",
        ScoreMod("score * 2").spec.replace("score * 2.0", "2*score"),
        ScoreMod("score * 2").spec.replace("score * 2.0", "system(2)"),
        ScoreMod("score * 2").spec.replace("score * 2.0", "score) + (2.0"),
        ScoreMod("score + x[h]", x=SLOPES).spec.replace("float32", "int"),
        ScoreMod("score + x[h]", x=SLOPES).spec.replace("1]", "true]"),
        ScoreMod("score + x[h]", x=SLOPES).spec.replace("1]", "7]"),
        ScoreMod("score + x[h]", x=SLOPES).spec.replace("array0", "array1"),
        ScoreMod("score + x", x=1).spec.replace('"int"', '"double"'),
        ScoreMod("score + x", x=1).spec.replace('"int"', "[]"),
        ScoreMod(mask="q < kv").spec.replace("q < kv", "0.0 < score"),
    ],
    ids=lambda spec: spec[:60],
)
@pytest.mark.parametrize("backend", ("cpu", "metal"))
def test_a_spec_from_elsewhere_is_checked_before_it_is_printed(spec, backend):
    with pytest.raises(ValueError, match="not a score function as orchard_jit writes it down"):
        Source(spec, backend)


# Derivatives and rendering.


@pytest.mark.parametrize(
    "text, slope",
    [
        ("cap * tanh(score / cap)", "Real(1.0) - value0 * value0"),
        ("score + cap * kv", "Real(1.0)"),
        ("cap * score", "inputs.scalar0"),
        ("score * score * cap", "Real(2.0) * score * inputs.scalar0"),
        ("where(kv < q, score, cap)", "select(less(at.key, at.query), Real(1.0), Real(0.0))"),
        ("cap + q", "Real(0.0)"),
        ("floor(score) + cap", "Real(0.0)"),
        ("score ** 9 / cap", "Real(9.0) * power<8>(score) / inputs.scalar0"),
    ],
)
def test_derivatives_are_simple(text, slope):
    source = Source(ScoreMod(text, cap=50.0).spec, "cpu")
    assert source.slope.result == slope


def test_a_given_derivative_takes_the_place_of_the_derived_one():
    source = Source(ScoreMod("floor(score)", derivative="1").spec, "cpu")
    assert (source.modify.result, source.slope.result) == ("floor(score)", "Real(1.0)")
    assert Source(ScoreMod(derivative="2").spec, "cpu").slope.result == "Real(2.0)"


@pytest.mark.parametrize("function", ("tanh({})", "abs({})", "max({}, 1)", "1 / (1 + {})", "score * {}"))
def test_derivatives_of_deep_expressions_stay_small(function):
    text = "score"
    while len(text) < 350 and text.count("(") < 30:
        text = function.format(text)
    source = Source(ScoreMod(text).spec, "cpu")
    assert len("".join(source.slope.statements)) < 10_000


def test_no_text_of_the_user_reaches_the_source():
    mod = ScoreMod("score + secret_name[h] * other_secret", secret_name=SLOPES, other_secret=2.0)
    for backend, arch in (("cpu", "x86-64-v3"), ("metal", "apple9")):
        made = recipe.for_variant(variant(mod.spec, backend=backend, arch=arch))
        assert "secret" not in "".join(made.files.values()) + json.dumps(made.origin)


def test_equal_functions_have_one_key_and_the_modules_that_print_them_are_in_it():
    keys = [recipe.for_variant(variant(softcap(cap).spec if cap else "")).key for cap in (1.0, 2.0, None)]
    assert keys[0] == keys[1] != keys[2]
    origin = recipe.for_variant(variant(softcap(1.0).spec)).origin
    assert origin["score"] == files.folder_sha256(Path(inspect.getfile(Source)).parent)
    assert "score" not in recipe.for_variant(variant("")).origin


def test_a_key_needs_neither_parsing_nor_sympy():
    """A warm call finds its library by the spec alone; a forward never derives anything."""
    script = f"""
import sys
from orchard_jit.score.source import Source
from orchard_jit import selection
from orchard_jit.jit import recipe
assert "sympy" not in sys.modules
from orchard_jit.score import parser
parser.number_of = None
variant = selection.select(backend="cpu", arch="x86-64-v3", kernel="backward", dtype="float32", head_dim=64,
                           head_dim_v=64, score={softcap(2.0).spec!r})
recipe.for_variant(variant).key
assert "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_forward_does_not_derive(monkeypatch):
    from orchard_jit.score import source

    monkeypatch.setattr(source, "_derivative", None)
    files = render.Rendering(
        "cpu/score.h.j2", variant=variant(softcap(2.0).spec, kernel="forward").to_json(), abi_version=2
    )
    assert "modify" in files["score.h"]
    assert "slope(" not in files["score.h"]
