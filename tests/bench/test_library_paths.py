"""Where a library goes another way than its neighbours: the closed form beside the tracer."""

from typing import Any

import pytest

from vram_plan.bench.trace import trace_step
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.hf_config import from_hf_config

TOLERANCE = 0.003
"""Of the peak: scalars of 512 bytes weigh much in models this small."""
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = ENDS | {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 511}
BIGCODE = GPT2 | {"model_type": "gpt_bigcode", "n_positions": 256, "n_embd": 128}
T5 = {
    "model_type": "t5",
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 512,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 511,
    "decoder_start_token_id": 0,
}
MARIAN = {
    "model_type": "marian",
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 2000,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 1,
}
ALBERT = {
    "model_type": "albert",
    "hidden_size": 64,
    "embedding_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 511,
    "pad_token_id": 0,
}
FALCON = ENDS | {
    "model_type": "falcon",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_kv_heads": 1,
    "new_decoder_architecture": True,
    "ffn_hidden_size": 256,
    "vocab_size": 511,
}
PREFIX = {"method": "prefix", "virtual_tokens": 20, "attention": "sdpa", "weights_dtype": "fp32"}
PROMPT = {"method": "prompt", "virtual_tokens": 8, "quantization": "int8"}
SHARDED = {"fsdp": "full-shard", "gpus": 4, "weights_dtype": "fp32"}
BASE = {"precision": "bf16", "micro_batch": 2, "seq_len": 128, "optimizer": "sgd"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Behind a prefix sdpa is given a mask, which is widened and padded in every block.
    "prefix": (GPT2, PREFIX),
    "prefix of one key head": (BIGCODE, PREFIX),
    # The mask has a row for every sequence, and so has its sum with the position bias.
    "prefix with a bias": (T5 | {"model_type": "umt5"}, PREFIX),
    # T5's last projection is not quantized, so PEFT scales its input as it does elsewhere.
    "ia3 beside fp32": (T5, {"method": "ia3", "quantization": "nf4", "loss": "fused-ce"}),
    # The math kernel adds its mask out of place under selective checkpointing's mode.
    "math kernel, selective": (
        BIGCODE,
        {
            "method": "lora",
            "precision": "fp32",
            "attention": "sdpa",
            "checkpointing": "selective",
            "adapter_dtype": "fp32",
        },
    ),
    # FSDP 2 casts weights and leaves the bias of the logits, a buffer, in fp32.
    "fp32 buffer": (MARIAN, {"method": "freeze", "freeze_layers": 1, **SHARDED}),
    # Shared blocks are gathered once.
    "gathered once": (ALBERT, {"method": "lora", **SHARDED, "fsdp": "grad-op", "micro_batch": 4}),
    # The hook on lookups is on the encoder's table, PEFT looks up in the shared one.
    "prompt beside the hook": (MARIAN, {**PROMPT, "checkpointing": "full"}),
    # An int8 product's context holds its input, though its checkpoint is on the host.
    "held beside the host": (
        MARIAN | {"model_type": "bart"},
        {**PROMPT, "checkpointing": "offload", "loss": "fused-ce"},
    ),
    # Heads of a single group are views.
    "one group": (FALCON, {"method": "bitfit", "offload": "activations", "seq_len": 256}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_the_peak_is_the_traced_one(case: str) -> None:
    """The whole step's, to a few scalars."""
    fields, options = CASES[case]
    config = resolve(from_hf_config(fields, name="small", source="test"), BASE | options)
    traced = trace_step(trace_config(config, fields)).peak_bytes
    assert plan_config(config).memory.allocated_bytes == pytest.approx(traced, rel=TOLERANCE)
