"""A shallow trace extended to more layers is the deeper model's trace, storage by storage."""

from dataclasses import replace
from typing import Any

import pytest

from vram_plan.bench.allocator import (
    changes_of,
    deep_changes,
    replay_deep,
    replay_trace,
    whole_timeline,
)
from vram_plan.bench.trace import TraceConfig, trace_deep, trace_step
from vram_plan.estimator.allocator import Change, replay

CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {"r": 8}, "checkpointing": "full"},
    "8-bit": {"method": "full", "optimizer": "adamw-8bit"},
}


def traced(layers: int, **fields: Any) -> TraceConfig:
    config = {
        "model_type": "llama",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 4000,
    }
    return TraceConfig(config=config, seq=512, attention="flash", history=True, **fields)


def sizes(changes: list[Change]) -> list[int]:
    """All but a few kilobytes of scratch that grow with the number of tensors in a list."""
    return sorted(delta for _, delta in changes if abs(delta) > 64 * 1024)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_deeper_model(name: str) -> None:
    shallow = trace_step(traced(4, **CONFIGS[name]))
    deep = trace_step(traced(7, **CONFIGS[name]))
    ours, theirs = deep_changes(shallow, 7), list(changes_of(whole_timeline(deep)))
    assert len(ours) == len(theirs)
    assert sizes(ours) == sizes(theirs)
    found, wanted = replay(ours), replay_trace(deep)
    assert found.stats.requested_peak == wanted.stats.requested_peak
    assert found.stats.allocated == wanted.stats.allocated
    assert found.reserved_peak_bytes == pytest.approx(wanted.reserved_peak_bytes, rel=0.01)


def test_four_layers_are_themselves() -> None:
    shallow = trace_step(traced(4, **CONFIGS["lora"]))
    assert deep_changes(shallow, 4) == list(changes_of(whole_timeline(shallow)))
    with pytest.raises(ValueError, match="fewer than"):
        deep_changes(shallow, 3)
    with pytest.raises(ValueError, match="trace the model as it is"):
        deep_changes(shallow, 8, peak_bytes=2 * shallow.peak_bytes)
    with pytest.raises(ValueError, match="not 4"):
        deep_changes(trace_step(traced(2, steps=1)), 8)


def test_a_deep_run() -> None:
    config = replace(traced(8, **CONFIGS["lora"]), history=False)
    found = replay_deep(config, trace_deep(config))
    wanted = replay_trace(trace_step(replace(config, history=True)))
    assert found.stats.requested_peak == wanted.stats.requested_peak
    assert found.reserved_peak_bytes == pytest.approx(wanted.reserved_peak_bytes, rel=0.01)
