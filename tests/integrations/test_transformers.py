"""Hugging Face models do on `attn_implementation="orchard_jit"` what they do on the library's own attention.

Models are small and randomly initialised from configurations: nothing is downloaded.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
hf = pytest.importorskip("transformers")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from transformers import masking_utils  # noqa: E402

import orchard_jit  # noqa: E402
from orchard_jit import call  # noqa: E402
from orchard_jit.integrations import transformers as ours  # noqa: E402
from orchard_jit.integrations import transformers_masks as masks  # noqa: E402
from orchard_jit.integrations.report import LEDGER  # noqa: E402

BATCH, LENGTH, VOCABULARY, WINDOW = 2, 13, 40, 5
# Weights large enough for attention to matter.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "dropout": 0.0,
    "init_std": 0.3,
    "decoder_start_token_id": 1,
    **TOKENS,
}


def text():
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # left padding
    # What a padded query sees differs: nothing, or for "eager" everything. So it has nothing to predict.
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask.cumsum(1) < 2, -100)}


def plain_text():
    inputs = text()
    return {"input_ids": inputs["input_ids"], "labels": inputs["input_ids"]}


def speech():
    return {"input_features": torch.randn(BATCH, 8, 32), "labels": torch.randint(3, VOCABULARY, (BATCH, 7))}


def images():
    return {"pixel_values": torch.randn(BATCH, 3, 16, 16), "labels": torch.tensor([0, 1])}


def gpt_oss():
    return hf.GptOssConfig(**GROUPED, sliding_window=WINDOW, num_local_experts=2, num_experts_per_tok=1)


def gemma2():
    return hf.Gemma2Config(
        **GROUPED, query_pre_attn_scalar=8, sliding_window=WINDOW, attn_logit_softcapping=2.0, **TOKENS
    )


def modern_bert():
    return hf.ModernBertConfig(
        **SIZES, initializer_cutoff_factor=2.0, local_attention=2 * WINDOW, global_attn_every_n_layers=2,
        cls_token_id=1, sep_token_id=2, **TOKENS,
    )  # fmt: skip


def bart():
    return hf.BartConfig(**SEQ2SEQ, max_position_embeddings=16)


def whisper():
    return hf.WhisperConfig(**SEQ2SEQ, num_mel_bins=8, max_source_positions=16, max_target_positions=16)


def t5():
    return hf.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip


def vit():
    return hf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, image_size=16,
        patch_size=4, initializer_range=0.3,
    )  # fmt: skip


MODELS = {
    # name: class, configuration, inputs, what it is compared with
    "Llama": ("LlamaForCausalLM", lambda: hf.LlamaConfig(**SIZES), text, "sdpa"),
    "Qwen3, grouped heads": ("Qwen3ForCausalLM", lambda: hf.Qwen3Config(**GROUPED), text, "sdpa"),
    "Gemma 2, soft cap and window": ("Gemma2ForCausalLM", gemma2, text, "eager"),
    "Mistral, window": (
        "MistralForCausalLM", lambda: hf.MistralConfig(**GROUPED, sliding_window=WINDOW), plain_text, "sdpa",
    ),
    "Mistral, window and padding": (
        "MistralForCausalLM", lambda: hf.MistralConfig(**GROUPED, sliding_window=WINDOW), text, "sdpa",
    ),
    "GPT-OSS, sinks and window": ("GptOssForCausalLM", gpt_oss, text, "eager"),
    "ModernBERT, window": ("ModernBertForMaskedLM", modern_bert, plain_text, "sdpa"),
    "ModernBERT, window and padding": ("ModernBertForMaskedLM", modern_bert, text, "sdpa"),
    "BART, cross-attention": (
        "BartForConditionalGeneration", bart, text, "sdpa",
    ),
    "Whisper, cross-attention": ("WhisperForConditionalGeneration", whisper, speech, "sdpa"),
    "T5, learned bias": ("T5ForConditionalGeneration", t5, text, "eager"),
    "ViT": ("ViTForImageClassification", vit, images, "sdpa"),
}  # fmt: skip
DECODERS = [
    name for name in MODELS if name.partition(",")[0] in ("Llama", "Qwen3", "Gemma 2", "Mistral", "GPT-OSS")
]


def pair(name, device="cpu"):
    """The same model twice, on the library's attention and on ours; and its inputs."""
    kind, config, inputs, reference = MODELS[name]
    models = []
    for implementation in (reference, "orchard_jit"):
        torch.manual_seed(0)
        model = getattr(hf, kind)._from_config(copy.deepcopy(config()), attn_implementation=implementation)
        models.append(model.to(device))
    models[1].load_state_dict(models[0].state_dict())
    return *models, {key: value.to(device) for key, value in inputs().items()}


def losses(model, inputs, steps):
    """Of training, and the gradients of the first step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    model.train()
    curve, first = [], None
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        curve.append(loss.item())
        if first is None:
            first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
    return torch.tensor(curve), first


def assert_trains_alike(theirs, mine, inputs, steps=10, tolerance=2e-4):
    (expected, theirs_first), (actual, mine_first) = (
        losses(model, inputs, steps) for model in (theirs, mine)
    )
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    assert mine_first.keys() == theirs_first.keys()
    scale = max(gradient.abs().max() for gradient in theirs_first.values())
    for name, gradient in theirs_first.items():
        error = (mine_first[name] - gradient).abs().max() / scale
        assert error < 2e-5, f"gradient of {name}: {error:.1e} of the largest"


@pytest.mark.parametrize("name", MODELS)
def test_ten_steps_of_training(name):
    assert_trains_alike(*pair(name))


@pytest.mark.parametrize("name", ["Mistral, window and padding", "T5, learned bias"])
def test_training_on_mps(name):
    assert_trains_alike(*pair(name, "mps"), steps=2)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS)
def test_generated_tokens(name, cache):
    theirs, mine, inputs = pair(name)
    inputs.pop("labels")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "cache_implementation": cache}
    options |= {"disable_compile": True, "eos_token_id": None}
    expected, actual = (model.eval().generate(**inputs, **options) for model in (theirs, mine))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["BART, cross-attention", "T5, learned bias"])
def test_generated_tokens_of_encoders_and_decoders(name):
    theirs, mine, inputs = pair(name)
    inputs.pop("labels")
    expected, actual = (
        model.eval().generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=2)
        for model in (theirs, mine)
    )
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_gradient_checkpointing(reentrant):
    theirs, mine, inputs = pair("Mistral, window and padding")
    mine.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_trains_alike(theirs, mine, inputs, steps=2)


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
def test_autocast(compiled):
    """Rotary embeddings make queries and keys float32 again, beside values in bfloat16."""
    theirs, mine, inputs = pair("Llama")
    if compiled:
        torch._dynamo.reset()
        mine.compile(backend="aot_eager", fullgraph=True)
    orchard_jit.report(reset=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = (model(**inputs).loss for model in (theirs, mine))
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
    actual.backward()
    assert compiled or all("bf16" in name for name in orchard_jit.report().variants)


@pytest.mark.usefixtures("compiler_of_inductor")
@pytest.mark.parametrize(
    "name, backend",
    [("Llama", "aot_eager"), ("Llama", "inductor"), ("Mistral, window and padding", "aot_eager")],
)
def test_compiled(name, backend):
    theirs, mine, inputs = pair(name)
    torch._dynamo.reset()
    mine.compile(backend=backend, fullgraph=True)
    assert_trains_alike(theirs, mine, inputs, steps=3)


def test_compiled_for_any_length():
    """With symbolic lengths there are fewer graphs than lengths."""
    theirs, mine, _ = pair("Llama")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    mine.compile(backend=counter, fullgraph=True, dynamic=True)
    for length in (5, 9, 13):
        ids = torch.randint(3, VOCABULARY, (BATCH, length))
        inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
        torch.testing.assert_close(mine(**inputs).loss, theirs(**inputs).loss, rtol=1e-5, atol=1e-5)
    assert counter.frame_count < 3


class TestReport:
    """`orchard_jit.report` knows of the calls that a model makes."""

    @pytest.fixture(autouse=True)
    def _from_zero(self):
        orchard_jit.report(reset=True)

    def test_training(self):
        _, mine, inputs = pair("Mistral, window and padding")
        losses(mine, inputs, steps=3)
        report = orchard_jit.report()
        assert (report.calls, report.fallbacks) == (3 * 2, {})
        assert sorted(report.variants.values()) == [3 * 2] * 2  # a forward and a backward
        assert all("window" in name and "mask" in name for name in report.variants)

    def test_inference_has_no_backward(self):
        _, mine, inputs = pair("Llama")
        with torch.no_grad():
            mine(**inputs)
        (name,) = orchard_jit.report().variants
        assert "forward" in name

    def test_a_compiled_model_is_noted_as_it_is_traced(self):
        _, mine, inputs = pair("Llama")
        torch._dynamo.reset()
        compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            compiled(**inputs)
        report = orchard_jit.report()
        assert (report.calls, report.traced) == (0, {"transformers: cpu float32 mask": None})

    def test_calls_that_are_alike_are_planned_once(self, monkeypatch):
        plans = []
        monkeypatch.setattr(call, "plan", lambda *given, plan=call.plan: plans.append(given) or plan(*given))
        monkeypatch.setattr(LEDGER, "_plans", {})
        _, mine, inputs = pair("Llama")
        losses(mine, inputs, steps=2)
        assert len(plans) == 1
        with torch.autocast("cpu", torch.bfloat16):
            mine(**inputs)
        assert len(plans) == 2
        assert orchard_jit.report().calls == 6

    def test_packed_sequences(self):
        _, mine, inputs = pair("Qwen3, grouped heads")
        positions = torch.cat([torch.arange(4), torch.arange(LENGTH - 4)])[None]
        mine(input_ids=inputs["input_ids"][:1], position_ids=positions, use_cache=False)
        assert all("varlen" in name for name in orchard_jit.report().variants)


class TestPackedSequences:
    """Several sequences in a row, each attending to itself."""

    lengths = (4, 6, 3)

    def positions(self):
        return torch.cat([torch.arange(n) for n in self.lengths])[None]

    @pytest.mark.parametrize("name", ["Qwen3, grouped heads", "Mistral, window"])
    def test_found_in_position_ids(self, name):
        theirs, mine, inputs = pair(name)
        ids = inputs["input_ids"][:1]
        inputs = {"input_ids": ids, "labels": ids, "position_ids": self.positions(), "use_cache": False}
        assert_trains_alike(theirs, mine, inputs, steps=3)

    def test_said_by_cu_seq_lens(self):
        """ModernBERT without padding: as if each sequence were alone."""
        _, mine, inputs = pair("ModernBERT, window")
        ids = inputs["input_ids"][:1]
        ends = torch.tensor([0, *self.lengths]).cumsum(0).to(torch.int32)
        packed = mine(
            input_ids=ids, position_ids=self.positions(), cu_seq_lens_q=ends, cu_seq_lens_k=ends,
            max_length_q=max(self.lengths), max_length_k=max(self.lengths),
        ).logits  # fmt: skip
        alone = torch.cat([mine(input_ids=part).logits for part in ids.split(self.lengths, 1)], 1)
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)

    def test_and_a_mask_contradict(self):
        q = torch.randn(1, 2, LENGTH, 8)
        ends = torch.tensor([0, LENGTH], dtype=torch.int32)
        with pytest.raises(ValueError, match="say different things"):
            ours.attention(
                torch.nn.Module(),
                q,
                q,
                q,
                torch.ones(1, 1, LENGTH, LENGTH),
                cu_seq_lens_q=ends,
                cu_seq_lens_k=ends,
            )


MASKS = {
    "causal": masking_utils.causal_mask_function,
    "bidirectional": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(3),
    "window to both sides": masking_utils.sliding_window_bidirectional_mask_function(3),
    "chunks": masking_utils.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.int64)),
    "images": masking_utils.or_masks(
        masking_utils.causal_mask_function,
        masking_utils.blockwise_overlay(torch.tensor([[-1, 0, 0, 0, -1, -1, 1, 1, -1]] * 2)),
    ),
}
SIZES_OF_MASKS = {
    "square": (9, 9, 0, 0),
    "one query": (1, 9, 8, 0),
    "the first query": (1, 9, 0, 0),
    "more queries": (9, 3, 0, 0),
    "within the window": (3, 3, 0, 0),
    "chunk": (4, 9, 5, 0),
    "shifted": (2, 5, 5, 2),
}


class TestMasks:
    """What is handed to the kernels says what the library's mask says, or is that mask."""

    @pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
    @pytest.mark.parametrize("size", SIZES_OF_MASKS)
    @pytest.mark.parametrize("name", MASKS)
    def test_they_say_the_same(self, name, size, padded):
        q_length, kv_length, q_offset, kv_offset = SIZES_OF_MASKS[size]
        padding = torch.ones(2, 9, dtype=torch.bool)
        padding[1, :3] = not padded
        given = {
            "batch_size": 2, "q_length": q_length, "kv_length": kv_length, "q_offset": q_offset,
            "kv_offset": kv_offset, "mask_function": MASKS[name], "attention_mask": padding,
        }  # fmt: skip
        expected = masking_utils.sdpa_mask(**given, allow_is_causal_skip=False)
        module = torch.nn.Module()
        module.is_causal = name != "bidirectional" and not name.endswith("sides")
        mask = masks.mask(**given, allow_is_bidirectional_skip=not module.is_causal)
        q, k, v = (torch.randn(2, 2, n, 8) for n in (q_length, kv_length, kv_length))
        out, _ = ours.attention(module, q, k, v, mask)
        wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=expected)
        torch.testing.assert_close(out.transpose(1, 2), wanted, rtol=1e-5, atol=1e-5)
        known = mask is None or masks.structure_of(mask) is not None
        assert known == (name not in ("chunks", "images"))

    def test_a_mask_that_a_model_has_changed_is_read(self):
        mask = masks.mask(2, 9, 9, mask_function=MASKS["window"])
        q = torch.randn(2, 2, 9, 8)
        changed = mask & (torch.arange(9) != 4)
        changed[..., 4, 4] = True
        out, _ = ours.attention(torch.nn.Module(), q, q, q, changed)
        wanted = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=changed)
        torch.testing.assert_close(out.transpose(1, 2), wanted, rtol=1e-5, atol=1e-5)
        mask = masks.mask(1, 9, 9, mask_function=MASKS["window"])
        mask[..., 4] = False
        mask[..., 4, 4] = True
        out, _ = ours.attention(torch.nn.Module(), q, q, q, mask)
        torch.testing.assert_close(out.transpose(1, 2), wanted, rtol=1e-5, atol=1e-5)

    def test_another_release_that_means_something_else_or_has_it_no_more(self, monkeypatch):
        def overlay(sliding_window):
            def inner_mask(batch_idx, head_idx, q_idx, kv_idx):
                return kv_idx >= q_idx - sliding_window

            inner_mask.__qualname__ = "sliding_window_overlay.<locals>.inner_mask"
            inner_mask.__module__ = masking_utils.__name__
            return inner_mask

        monkeypatch.setattr(masking_utils, "sliding_window_overlay", overlay)
        monkeypatch.delattr(masking_utils, "packed_sequence_mask_function")
        monkeypatch.setattr(masks, "_READERS", dict(masks._READERS))
        masks._check_readers()
        assert [name.partition(".")[0] for name in masks._READERS] == [
            "and_masks",
            "sliding_window_bidirectional_overlay",
        ]

    def test_of_this_release_all_are_read(self):
        """Else the kernels would read masks that they could go without."""
        assert masks._READERS.keys() == masks._SAMPLES.keys()


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
def test_a_model_with_attention_of_its_own_is_refused(compiled):
    """It would add a boolean mask to its scores, or go without."""
    config = hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2)
    model = hf.BloomForCausalLM._from_config(config, attn_implementation="orchard_jit")
    if compiled:
        torch._dynamo.reset()
        model.compile(backend="eager")
    with pytest.raises(Exception, match="BloomModel has an attention of its own"):
        model(input_ids=torch.ones(1, 3, dtype=torch.int64))


def test_what_is_not_served_is_refused():
    q = torch.randn(1, 2, LENGTH, 8)
    module = torch.nn.Module()
    for options, error, message in (
        ({"cache": object()}, NotImplementedError, "paged cache"),
        ({"output_attentions": True}, NotImplementedError, "gives no weights"),
        ({"sliding_window": WINDOW}, ValueError, "a window of 5 and 13 keys but no mask"),
    ):
        with pytest.raises(error, match=message):
            ours.attention(module, q, q, q, None, **options)
