"""What a trace tells."""

import gc
from typing import Any

import pytest
import torch

from vram_plan.bench.trace import Trace, TraceConfig, fake, trace_step
from vram_plan.bench.trace.storages import StorageLog
from vram_plan.bench.trace.timeline import round_up


def traced(shape: dict[str, Any], **options: Any) -> Trace:
    return trace_step(TraceConfig(config=shape, **{"batch": 2, "seq": 64, **options}))


def test_events_add_up(shapes: dict[str, dict[str, Any]]) -> None:
    trace = traced(shapes["llama"])
    assert trace.phases == ("forward", "loss", "backward", "clip", "step", "zero_grad")
    live = trace.start_bytes
    for event in trace.events:
        live += event.delta
        assert event.live == live
    assert live == trace.start_bytes  # the second step leaves what it found
    assert sum(trace.components().values()) == trace.peak_bytes
    assert sum(block.bytes for block in trace.alive_at_peak("step")) == trace.phase_peaks["step"]


def test_states_and_step(shapes: dict[str, dict[str, Any]]) -> None:
    """bf16 AdamW foreach: 2 + 2 + 2 bytes kept, 2 of gradients and 2 of temporaries at the step."""
    trace = traced(shapes["llama"])
    parts = trace.components("step")
    weights = parts["weights"]
    assert weights == pytest.approx(2 * trace.parameters, rel=1e-3)
    assert parts["gradients"] == weights
    assert parts["optimizer_states"] == 2 * weights
    assert parts["temporaries"] == pytest.approx(weights, rel=1e-2)


def test_layers_are_linear(shapes: dict[str, dict[str, Any]]) -> None:
    """Peaks of 2, 3 and 4 layers lie on a line."""
    peaks = [
        traced({**shapes["llama"], "num_hidden_layers": layers}).phase_peaks for layers in (2, 3, 4)
    ]
    for phase in peaks[0]:
        first, second, third = (peak[phase] for peak in peaks)
        assert third - second == second - first


def test_what_a_layer_keeps(shapes: dict[str, dict[str, Any]]) -> None:
    trace = traced(shapes["llama"], attention="flash")
    kept = trace.kept("model.layers.1")
    tokens, hidden, inner = 128, 256, 512
    by_module = {block.module: block for block in kept}
    assert by_module["model.layers.1.mlp.act_fn"].bytes == 2 * tokens * inner
    assert {block.phase for block in kept} == {"forward"}
    norms = [b for b in kept if b.module.endswith("layernorm") and b.dtype == "fp32"]
    assert sum(b.bytes for b in norms) == 2 * (4 * tokens * hidden + round_up(4 * tokens))


def test_checkpointing_recomputes(shapes: dict[str, dict[str, Any]]) -> None:
    trace = traced(shapes["llama"], checkpointing="full")
    kept = trace.kept("model.layers.0")
    assert sum(block.bytes for block in kept) <= 2 * 128 * 256
    assert any(event.block.recomputed for event in trace.events)


def test_lora_trains_adapters_in_fp32(shapes: dict[str, dict[str, Any]]) -> None:
    trace = traced(shapes["llama"], method="lora", lora={"r": 8, "target_modules": ["q_proj"]})
    assert trace.trainable_parameters == 2 * 8 * (256 + 256)
    assert trace.components("step")["gradients"] == 4 * trace.trainable_parameters


def test_ties_are_kept(shapes: dict[str, dict[str, Any]]) -> None:
    lora = traced(shapes["gpt2"], method="lora")
    hidden, inner, vocabulary, positions = 256, 1024, 1000, 1024
    block = 4 * hidden + 4 * hidden * hidden + 2 * hidden * inner + 5 * hidden + inner
    whole = (vocabulary + positions + 2) * hidden + 2 * block
    assert traced(shapes["gpt2"]).parameters == whole
    assert lora.parameters - lora.trainable_parameters == whole


@pytest.mark.parametrize("loss", ["fused-ce", "chunked", "liger"])
def test_other_losses_keep_fewer_logits(shapes: dict[str, dict[str, Any]], loss: str) -> None:
    wide = {**shapes["llama"], "vocab_size": 8000}
    plain, other = traced(wide, seq=512), traced(wide, seq=512, loss=loss)
    assert other.components("loss")["logits"] < plain.components("loss")["logits"]
    assert other.peak_bytes < plain.peak_bytes


def test_paged_states_are_not_on_the_device(shapes: dict[str, dict[str, Any]]) -> None:
    paged = traced(shapes["llama"], optimizer="paged-adamw")
    plain = traced(shapes["llama"], optimizer="adamw-8bit")
    assert paged.components("step")["optimizer_states"] < 8 * paged.trainable_parameters
    assert plain.start_bytes < traced(shapes["llama"]).start_bytes


def test_two_runs_agree(shapes: dict[str, dict[str, Any]]) -> None:
    first, second = traced(shapes["llama"]), traced(shapes["llama"])
    assert [(e.block.op, e.delta) for e in first.events] == [
        (e.block.op, e.delta) for e in second.events
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "dtype 'fp8' is not one of"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"attention": "flash", "dtype": "fp32"}, "flash attention wants fp16 or bf16"),
        ({"method": "bitfit"}, "leaves nothing to train"),
    ],
)
def test_refusals(shapes: dict[str, dict[str, Any]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        traced(shapes["llama"], **options)


def test_nothing_fake_is_left_behind(shapes: dict[str, dict[str, Any]]) -> None:
    traced(shapes["llama"])
    assert type(torch.ones(2) + 1) is torch.Tensor


def test_what_a_cycle_holds_is_gone_before_a_step() -> None:
    log = StorageLog()
    log.enter("backward")
    loop: list[Any] = [torch.empty(1000)]
    loop.append(loop)
    log.see(loop[0], "empty", "")
    gc.disable()
    try:
        del loop
        fake._let_go(log)
    finally:
        gc.enable()
    assert log.live_bytes == 0
