"""The other engines: shallow traces extended against traces of the whole depth."""

from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_deep, trace_step

CASES: dict[str, dict[str, Any]] = {
    "fsdp2, kept gathered": {"engine": "fsdp2", "ranks": 4, "fsdp": "grad-op"},
    "fsdp1": {"engine": "fsdp1", "ranks": 4, "dtype": "fp32", "compute_dtype": "bf16"},
    "tp": {"tp": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_extension_is_exact(shapes: dict[str, dict[str, Any]], case: str) -> None:
    shape = {**shapes["llama"], "num_hidden_layers": 6}
    config = TraceConfig(config=shape, batch=2, seq=48, attention="flash", **CASES[case])
    deep, whole = trace_deep(config), trace_step(config)
    assert deep.extended_from == (3, 4)
    assert deep.parameters == whole.parameters
    assert deep.trainable_parameters == whole.trainable_parameters
    assert deep.start_bytes == whole.start_bytes
    for phase, peak in whole.phase_peaks.items():
        # the gradient norm's partial results are rounded up once, not per layer
        assert deep.phase_peaks[phase] == pytest.approx(peak, abs=2048 if phase == "clip" else 0)
    assert deep.components() == whole.components()


def test_70b_on_64_ranks() -> None:
    """Every rank holds its 64th of weights and moments."""
    shape = {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    }
    found = trace_deep(
        TraceConfig(
            config=shape,
            seq=4096,
            dtype="fp32",
            compute_dtype="bf16",
            attention="flash",
            checkpointing="full",
            engine="fsdp2",
            ranks=64,
        )
    )
    assert found.layers == 80
    assert found.start_bytes == pytest.approx(12 * found.parameters / 64, rel=1e-3)
    assert found.components("step")["gradients"] == pytest.approx(
        4 * found.parameters / 64, rel=1e-3
    )
