"""Every optimizer, loss and precision on the fake device, for full and adapter training."""

from typing import Any

import pytest

from vram_plan.bench.trace import OPTIMIZERS, Trace, TraceConfig, trace_step

#: Bytes of optimizer states for a byte of bf16 weights, for tensors large enough to be quantized.
STATES = {
    "adamw": 2.0,
    "adamw-fused": 2.0,
    "adamw-for-loop": 2.0,
    "sgd": 0.0,
    "sgd-momentum": 1.0,
    "rmsprop": 1.0,
}


def traced(shape: dict[str, Any], **options: Any) -> Trace:
    return trace_step(TraceConfig(config=shape, **{"batch": 2, "seq": 64, **options}))


def complete(trace: Trace) -> None:
    """The step ended, left what it found, and every byte has a name."""
    assert trace.phases[-2:] == ("step", "zero_grad")
    assert trace.events[-1].live == trace.start_bytes
    assert sum(trace.components().values()) == trace.peak_bytes
    assert "" not in trace.components()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_optimizer(shapes: dict[str, dict[str, Any]], optimizer: str, method: str) -> None:
    trace = traced(shapes["llama"], optimizer=optimizer, method=method)
    complete(trace)
    parts = trace.components("step")
    if optimizer in STATES:
        # beside the states: step counters, where they are on the device
        wanted = pytest.approx(STATES[optimizer] * parts["gradients"], rel=3e-2)
        assert parts.get("optimizer_states", 0) == wanted
    else:
        assert parts["optimizer_states"] > 0


@pytest.mark.parametrize("loss", ["hf", "fused-ce", "chunked", "liger"])
@pytest.mark.parametrize(
    "options",
    [{}, {"method": "lora"}, {"dtype": "fp32", "autocast": "bf16"}, {"grad_accum": 3}],
    ids=["bf16", "lora", "autocast", "accumulated"],
)
def test_every_loss(shapes: dict[str, dict[str, Any]], loss: str, options: dict[str, Any]) -> None:
    complete(traced(shapes["llama"], loss=loss, seq=128, **options))


def test_accumulated_gradients_stay(shapes: dict[str, dict[str, Any]]) -> None:
    """From the second micro-batch on the forward pass runs beside the gradients."""
    once = traced(shapes["llama"])
    twice, thrice = (traced(shapes["llama"], grad_accum=count) for count in (2, 3))
    gradients = once.components("step")["gradients"]
    assert twice.phase_peaks["forward"] == once.phase_peaks["forward"] + gradients
    assert twice.phase_peaks == thrice.phase_peaks
    assert twice.phase_peaks["step"] == once.phase_peaks["step"]


def test_autocast_of_fp32_weights(shapes: dict[str, dict[str, Any]]) -> None:
    """fp32 weights, gradients and states; 16-bit copies of the linear weights until the loss."""
    trace = traced(shapes["llama"], dtype="fp32", autocast="bf16")
    complete(trace)
    parts = trace.components("step")
    assert parts["weights"] == pytest.approx(4 * trace.parameters, rel=1e-3)
    assert parts["gradients"] == parts["weights"]
    assert parts["optimizer_states"] == 2 * parts["weights"]
    embedding = 1000 * 256
    copies = [
        block
        for block in trace.alive_at("loss_end")
        if block.phase in ("forward", "loss") and block.op == "_to_copy" and len(block.shape) == 2
    ]
    copied = sum(block.bytes for block in copies)
    assert copied == pytest.approx(2 * (trace.parameters - embedding), rel=1e-2)


@pytest.mark.parametrize("autocast", [None, "bf16"])
def test_adapters_beside_fp32_weights(
    shapes: dict[str, dict[str, Any]], autocast: str | None
) -> None:
    trace = traced(shapes["llama"], method="lora", dtype="fp32", autocast=autocast)
    complete(trace)
    assert trace.components("step")["gradients"] == pytest.approx(
        4 * trace.trainable_parameters, rel=1e-2
    )
