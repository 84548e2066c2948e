"""Shallow traces extended against traces of the whole depth."""

from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_deep, trace_step

CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"method": "lora", "attention": "flash", "checkpointing": "full"}),
    ("gpt2", {"dtype": "fp32", "autocast": "bf16", "attention": "eager"}),
]
DEPTH = {"llama": "num_hidden_layers", "gpt2": "n_layer"}


@pytest.mark.parametrize(("family", "options"), CASES)
def test_extension_is_exact(
    shapes: dict[str, dict[str, Any]], family: str, options: dict[str, Any]
) -> None:
    shape = {**shapes[family], DEPTH[family]: 5}
    config = TraceConfig(config=shape, batch=2, seq=48, **options)
    deep, whole = trace_deep(config), trace_step(config)
    assert deep.extended_from == (3, 4)
    assert deep.start_bytes == whole.start_bytes
    assert deep.parameters == whole.parameters
    for phase, peak in whole.phase_peaks.items():
        # the gradient norm's partial results are rounded up to 512 bytes once, not per layer
        assert deep.phase_peaks[phase] == pytest.approx(peak, abs=1024 if phase == "clip" else 0)
    assert deep.components() == whole.components()


def test_shallow_models_are_traced_as_they_are(shapes: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="2 layers are few enough"):
        trace_deep(TraceConfig(config=shapes["llama"]))


def test_layers_of_several_kinds_are_refused() -> None:
    gemma = {"model_type": "gemma2", "num_hidden_layers": 8}
    with pytest.raises(ValueError, match="layer_types names several kinds"):
        trace_deep(TraceConfig(config=gemma))
