"""The tracer freezes the blocks that the plan freezes: the outermost lists of modules."""

import warnings
from typing import Any

import pytest

from vram_plan.bench.trace.build import build_model
from vram_plan.bench.translate import trace_config
from vram_plan.estimator import plan
from vram_plan.profiles.hf_config import from_hf_config

T5: dict[str, Any] = {
    "model_type": "umt5",
    "d_model": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "d_kv": 16,
    "d_ff": 64,
    "vocab_size": 64,
    "decoder_start_token_id": 0,
}
"""Its blocks are lists too, of two and of three layers."""


@pytest.mark.parametrize("frozen", [0, 1])
def test_lists_within_blocks_are_no_blocks(frozen: int) -> None:
    model = from_hf_config(T5, name="toy")
    planned = plan(model, method="freeze", freeze_layers=frozen, seq_len=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = build_model(trace_config(planned.config, T5))
    learning = {name for name, p in built.named_parameters() if p.requires_grad}
    encoder = {name.split(".")[2] for name in learning if name.startswith("encoder.block.")}
    assert encoder == {str(i) for i in range(frozen, 2)}
    tables = [name for name in learning if "relative_attention_bias" in name]
    assert len(tables) == 4 - frozen
