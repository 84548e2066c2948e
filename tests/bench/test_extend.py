"""Shallow traces extended against traces of the whole depth."""

from typing import Any

import pytest

from vram_plan.bench.trace import Extended, Trace, TraceConfig, trace_deep, trace_step

#: The gradient norm's partial results are rounded up to 512 bytes once, not per layer.
NORM_BYTES = 1024
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"method": "lora", "attention": "flash", "checkpointing": "full"}),
    ("llama", {"attention": "flash", "checkpointing": "selective"}),
    ("llama", {"checkpointing": "offload"}),
    ("llama", {"offload": "activations", "loss": "chunked", "grad_accum": 2}),
    ("llama", {"method": "lora", "quantization": "nf4", "optimizer": "paged-adamw-8bit"}),
    ("gpt2", {"dtype": "fp32", "autocast": "bf16", "attention": "eager"}),
    ("bert", {"method": "lora", "attention": "sdpa"}),
    ("t5", {"attention": "eager"}),
]
DEPTH = {"llama": "num_hidden_layers", "gpt2": "n_layer", "t5": "num_layers"}
INNER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
}
MLA = {
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
#: Layers of several kinds: what is traced, and how.
KINDS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("gemma2", {"num_hidden_layers": 9, "sliding_window": 16}, (5, 7)),
    ("gemma3_text", {"num_hidden_layers": 20, "sliding_window": 16}, (8, 14)),
    ("gpt_oss", {"num_hidden_layers": 8, "num_local_experts": 4}, (4, 6)),
    ("mixtral", {"num_hidden_layers": 6, "num_local_experts": 4}, (3, 4)),
    (
        "deepseek_v3",
        {"num_hidden_layers": 11, "first_k_dense_replace": 3, "head_dim": 16, **MLA},
        (5, 6),
    ),
]


def check(deep: Extended, whole: Trace) -> None:
    assert deep.start_bytes == whole.start_bytes
    assert deep.parameters == whole.parameters
    assert deep.trainable_parameters == whole.trainable_parameters
    assert deep.host_bytes == whole.host_bytes
    for phase, peak in whole.phase_peaks.items():
        spread = NORM_BYTES if phase == "clip" else 0
        assert deep.phase_peaks[phase] == pytest.approx(peak, abs=spread), phase
    assert deep.components() == whole.components()
    assert max(instant.bytes for instant in deep.instants) == whole.peak_bytes
    for mark in ("forward_end", "loss_end", "backward_end", "step_end"):
        sums: dict[str, int] = {}
        for block in whole.alive_at(mark):
            sums[block.component] = sums.get(block.component, 0) + block.bytes
        assert deep.marks[mark] == sums


@pytest.mark.parametrize(("family", "options"), CASES)
def test_extension_is_exact(
    shapes: dict[str, dict[str, Any]], family: str, options: dict[str, Any]
) -> None:
    shape = {**shapes[family], DEPTH.get(family, "num_hidden_layers"): 5}
    config = TraceConfig(config=shape, batch=2, seq=48, **options)
    deep = trace_deep(config)
    assert deep.extended_from == (3, 4)
    assert deep.layers == 5
    check(deep, trace_step(config))


@pytest.mark.parametrize(("kind", "fields", "depths"), KINDS)
def test_layers_of_several_kinds(
    kind: str, fields: dict[str, Any], depths: tuple[int, ...]
) -> None:
    """A head, a period and a tail are found in the model itself."""
    shape = {"model_type": kind, **INNER, **fields}
    config = TraceConfig(config=shape, batch=2, seq=48, attention="eager")
    deep = trace_deep(config)
    assert deep.extended_from == depths
    check(deep, trace_step(config))


def test_shallow_models_are_traced_as_they_are(shapes: dict[str, dict[str, Any]]) -> None:
    config = TraceConfig(config=shapes["llama"])
    deep = trace_deep(config)
    assert deep.extended_from == ()
    check(deep, trace_step(config))


def test_states_before_the_step_are_those_after_one(shapes: dict[str, dict[str, Any]]) -> None:
    """Making the optimizer's states is as good as a first step run in full."""
    for optimizer in ("adamw", "adafactor", "muon", "adamw-8bit", "lion"):
        quick = TraceConfig(config=shapes["llama"], optimizer=optimizer)
        slow = TraceConfig(config=shapes["llama"], optimizer=optimizer, history=True)
        first, second = trace_step(quick), trace_step(slow)
        assert first.start_bytes == second.start_bytes
        assert [e.delta for e in first.events] == [e.delta for e in second.events]
