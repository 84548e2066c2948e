"""A few real training steps: what kernels in a row take, with everything around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vram_plan.bench.calibrate.clock import Clock
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.hf_config import from_hf_config

__all__ = ["Step", "configured", "measured_step", "reference_steps"]

_LLAMA = {
    "model_type": "llama",
    "num_key_value_heads": 4,
    "num_attention_heads": 4,
    "vocab_size": 2048,
}
_GPT2 = {
    "model_type": "gpt2",
    "n_embd": 192,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 2048,
    "resid_pdrop": 0.0,  # random numbers are slow on a CPU and free on a GPU: they are not modelled
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
Shapes = tuple[tuple[dict[str, Any], dict[str, Any]], ...]
_CPU: Shapes = (
    ({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}, {"seq_len": 64}),
    ({"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 3}, {"seq_len": 160}),
    ({"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3}, {"seq_len": 384}),
    (
        {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 3},
        {"seq_len": 160, "method": "lora"},
    ),
    (_GPT2, {"seq_len": 224}),
)
_CUDA: Shapes = (
    ({"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}, {"seq_len": 128}),
    ({"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4}, {"seq_len": 2048}),
    ({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2}, {"seq_len": 4096}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A configuration and the seconds of one of its steps."""

    config: TrainConfig
    seconds: float


def configured(fields: dict[str, Any], options: dict[str, Any], device: str) -> TrainConfig:
    """The configuration of a small model as it runs on this device."""
    precision = "fp32" if device == "cpu" else "bf16"
    chosen = {
        "attention": "eager" if device == "cpu" else "sdpa",
        "precision": precision,
        "weights_dtype": precision,
        "micro_batch": 2,
        **options,
    }
    return resolve(from_hf_config(fields, name="reference", source="calibration"), chosen)


def measured_step(fields: dict[str, Any], options: dict[str, Any], clock: Clock) -> Step:
    """Run a few steps and keep the quickest."""
    from vram_plan.bench.trace.quiet import without_library_noise
    from vram_plan.bench.trace.timed import TimedRun

    config = configured(fields, options, clock.device)
    with without_library_noise():
        run = TimedRun(trace_config(config, fields), clock.device, 0)
        run.step.run(run.batch)  # makes the optimizer's states
        seconds = clock.seconds(lambda: run.step.run(run.batch), least=5, budget=1.0)
    return Step(config=config, seconds=seconds)


def reference_steps(clock: Clock) -> list[Step]:
    """Steps of small models: some wait for the host, some for products, some in between."""
    shapes = _CPU if clock.device == "cpu" else _CUDA
    return [
        measured_step(fields if "model_type" in fields else {**_LLAMA, **fields}, options, clock)
        for fields, options in shapes
    ]
