"""Shallow traces extended against traces of the whole depth."""

from typing import Any

import pytest

from vram_plan.bench.trace import Extended, Trace, TraceConfig, trace_deep, trace_step

CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"method": "lora", "attention": "flash", "checkpointing": "full"}),
    ("llama", {"attention": "flash", "checkpointing": "selective"}),
    ("llama", {"checkpointing": "offload"}),
    ("llama", {"offload": "activations", "loss": "chunked", "grad_accum": 2}),
    ("llama", {"method": "lora", "quantization": "nf4", "optimizer": "paged-adamw-8bit"}),
    ("gpt2", {"dtype": "fp32", "autocast": "bf16", "attention": "eager"}),
    ("llama", {"method": "prefix"}),
    ("llama", {"method": "p-tuning"}),
    ("bert", {"method": "lora", "attention": "sdpa"}),
    ("t5", {"attention": "eager"}),
]
DEPTH = {"llama": "num_hidden_layers", "gpt2": "n_layer", "t5": "num_layers"}


def check(deep: Extended, whole: Trace) -> None:
    assert deep.start_bytes == whole.start_bytes
    assert deep.parameters == whole.parameters
    assert deep.trainable_parameters == whole.trainable_parameters
    assert deep.host_bytes == whole.host_bytes
    for phase, peak in whole.phase_peaks.items():
        assert deep.phase_peaks[phase] == peak, phase
        assert deep.components(phase) == whole.components(phase), phase
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
