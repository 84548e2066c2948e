"""The fake trace against the CPU allocator's own events: older decoders, encoders, both together.

What is left between them is host memory that autograd keeps on a CPU but not on a GPU: scalars of
``x * 0.5`` (512 bytes each after rounding) and the generator's state of every checkpoint.
"""

from dataclasses import replace
from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_step

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
BART: dict[str, Any] = {
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 320,
    "decoder_ffn_dim": 320,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "phi": BERT | SPECIAL,
    "gpt_neox": BERT | SPECIAL,
    "falcon": BERT | SPECIAL,
    "opt": BERT | {"ffn_dim": 320, "word_embed_proj_dim": 128, "max_position_embeddings": 256},
    "bloom": SPECIAL | {"hidden_size": 128, "n_layer": 2, "n_head": 4, "vocab_size": 1000},
    "electra": BERT | {"embedding_size": 64},
    "albert": BERT | {"embedding_size": 64},
    "distilbert": {"dim": 128, "n_layers": 2, "n_heads": 4, "hidden_dim": 320, "vocab_size": 1000},
    "bart": BART,
    "mt5": {
        "d_model": 128,
        "d_ff": 320,
        "d_kv": 32,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 1000,
    },
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("phi", {"method": "prompt"}),
    ("gpt_neox", {"attention": "eager", "checkpointing": "full"}),
    ("opt", {"method": "prefix"}),
    ("bloom", {"attention": "eager"}),
    ("falcon", {"optimizer": "adamw-for-loop"}),
    ("electra", {"attention": "eager"}),
    ("distilbert", {"method": "rslora"}),
    ("albert", {}),
    ("bart", {"grad_accum": 2}),
    ("mt5", {"method": "lora"}),
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_fake_trace_equals_real_step(family: str, options: dict[str, Any]) -> None:
    shape = SHAPES[family] | {"model_type": family}
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
