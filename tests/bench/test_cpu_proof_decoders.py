"""The fake trace against the CPU allocator's own events: decoders, one method or optimizer each.

What is left between them is host memory that autograd keeps on a CPU but not on a GPU: scalars of
``x * 0.5`` (512 bytes each after rounding) and the generator's state of every checkpoint.
"""

from dataclasses import replace
from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_step

DECODER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IA3 = {
    "target_modules": ["k_proj", "v_proj", "down_proj"],
    "feedforward_modules": ["down_proj"],
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {}),
    ("mistral", {"loss": "fused-ce", "optimizer": "muon"}),
    ("qwen2", {"method": "bitfit"}),
    ("qwen2", {"loss": "liger"}),
    ("qwen3", {"checkpointing": "full"}),
    ("gemma", {"method": "lora"}),
    ("phi3", {"optimizer": "rmsprop"}),
    ("olmo2", {"method": "dora"}),
    ("granite", {"optimizer": "adafactor"}),
    ("starcoder2", {"method": "freeze", "freeze_layers": 1}),
    ("cohere", {"attention": "eager"}),
    ("glm", {"method": "ia3", "lora": IA3}),
    ("stablelm", {"method": "adalora"}),
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_fake_trace_equals_real_step(family: str, options: dict[str, Any]) -> None:
    shape = DECODER | {"model_type": family}
    kernel = {"attention": "sdpa"}
    config = TraceConfig(
        config=shape, batch=2, seq=128, dtype="fp32", rules="cpu", **kernel | options
    )
    fake = trace_step(config)
    real = trace_step(replace(config, device="cpu"))
    assert fake.start_bytes == real.start_bytes
    assert fake.peak_phase == real.peak_phase
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, rel=1e-3)
    assert fake.phase_peaks["step"] == pytest.approx(real.phase_peaks["step"], rel=1e-3)
