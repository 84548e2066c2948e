"""Checkpointing none, full, selective and on the host; every saved tensor on the host."""

from dataclasses import replace
from typing import Any

import pytest

from vram_plan.bench.trace import Trace, TraceConfig, trace_step

LAYERS, TOKENS, HIDDEN, INNER, HEADS, KV, VOCABULARY = 2, 2 * 128, 256, 512, 4, 2, 1000


def traced(shape: dict[str, Any], **options: Any) -> Trace:
    options = {"attention": "flash", **options}
    return trace_step(TraceConfig(config=shape, batch=2, seq=128, **options))


def kept(trace: Trace, module: str = "model.layers.1") -> int:
    return sum(block.bytes for block in trace.kept(module))


def test_selective_keeps_products_and_attention(shapes: dict[str, dict[str, Any]]) -> None:
    """Of a block: q, k, v, attention with its log-sum-exp, o, gate, up and down."""
    trace = traced(shapes["llama"], checkpointing="selective")
    head_dim = HIDDEN // HEADS
    widths = 2 * HIDDEN + 2 * KV * head_dim + HIDDEN + 2 * INNER + HIDDEN
    generator_state = 512
    expected = 2 * TOKENS * widths + 4 * TOKENS * HEADS + generator_state
    entered = 2 * TOKENS * HIDDEN
    assert kept(trace) - expected in (0, entered)
    ops = {block.op for block in trace.kept("model.layers.1.mlp")}
    assert ops <= {"mm"}


def test_selective_lies_between(shapes: dict[str, dict[str, Any]]) -> None:
    for method in ("full", "lora"):
        sizes = [
            kept(traced(shapes["llama"], method=method, checkpointing=kind), "model")
            for kind in ("none", "selective", "full", "offload")
        ]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == 4


def test_selective_makes_adapters_again(shapes: dict[str, dict[str, Any]]) -> None:
    trace = traced(shapes["llama"], method="lora", checkpointing="selective")
    assert not [block for block in trace.kept("model.layers.1") if "lora_" in block.module]
    again = [e.block for e in trace.events if e.block.recomputed and "lora_" in e.block.module]
    assert any(block.op == "mm" for block in again)
    others = [e.block for e in trace.events if e.block.recomputed and e.block.op == "mm"]
    assert all("lora_" in block.module for block in others)


def test_selective_keeps_quantized_products(shapes: dict[str, dict[str, Any]]) -> None:
    options = {"method": "lora", "quantization": "nf4", "checkpointing": "selective"}
    trace = traced(shapes["llama"], **options)
    assert any(e.block.op == "mm" and e.block.recomputed for e in trace.events)
    shape = (2, 128, INNER)
    assert any(block.shape == shape for block in trace.kept("model.layers.1.mlp"))


def test_checkpoints_on_the_host(shapes: dict[str, dict[str, Any]]) -> None:
    """Every block's input goes to the host; one at a time comes back."""
    full = traced(shapes["llama"], checkpointing="full")
    host = traced(shapes["llama"], checkpointing="offload")
    counters = 4 * 100
    assert host.host_bytes == pytest.approx(LAYERS * 2 * TOKENS * HIDDEN, abs=counters)
    assert kept(host, "model") < kept(full, "model")
    back = [e for e in host.events if e.block.shape == (2, 128, HIDDEN) and e.phase == "backward"]
    assert any(event.block.component == "activations" for event in back)
    assert host.phase_peaks["backward"] <= full.phase_peaks["backward"]


def test_every_saved_tensor_on_the_host(shapes: dict[str, dict[str, Any]]) -> None:
    plain = traced(shapes["llama"])
    host = traced(shapes["llama"], offload="activations")
    logits = 2 * TOKENS * VOCABULARY
    before = {block.number for block in host.start_blocks}
    left = sum(b.bytes for b in host.alive_at("loss_end") if b.number not in before)
    assert left < logits / 10
    assert host.host_bytes > sum(block.bytes for block in plain.kept("model"))
    # save_on_cpu makes no exception for weights: their transposes are copied like the rest
    assert host.host_bytes > 2 * LAYERS * (3 * INNER * HIDDEN + 2 * HIDDEN * HIDDEN)
    assert host.events[-1].live == host.start_bytes


def test_host_is_no_place_to_go_from_the_host(shapes: dict[str, dict[str, Any]]) -> None:
    for options in ({"checkpointing": "offload"}, {"offload": "activations"}):
        with pytest.raises(ValueError, match="choose rules cuda"):
            traced(shapes["llama"], device="cpu", rules="cpu", **options)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_selective_on_real_tensors(shapes: dict[str, dict[str, Any]], method: str) -> None:
    config = TraceConfig(
        config=shapes["llama"],
        batch=2,
        seq=192,
        dtype="fp32",
        attention="eager",
        rules="cpu",
        method=method,
        checkpointing="selective",
    )
    fake, real = trace_step(config), trace_step(replace(config, device="cpu"))
    assert fake.start_bytes == real.start_bytes
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, rel=1e-3)
    for phase in ("forward", "backward"):
        assert fake.phase_peaks[phase] == pytest.approx(real.phase_peaks[phase], rel=2e-3)
