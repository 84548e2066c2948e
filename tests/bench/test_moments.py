"""What is alive in one moment of the step: the closed form against the trace."""

from typing import Any

import pytest

from vram_plan.bench.trace import trace_step
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    CLIPPING,
    EMBEDDING_BACKWARD,
    FORWARD,
    LOSS,
)
from vram_plan.profiles.hf_config import from_hf_config

BLOCKS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 300,
}
LLAMA = BLOCKS | {"model_type": "llama"}
PHI = BLOCKS | {"model_type": "phi"}
STABLELM = BLOCKS | {"model_type": "stablelm"}
OPT = BLOCKS | {"model_type": "opt", "ffn_dim": 256, "word_embed_proj_dim": 64}
NEO: dict[str, Any] = {
    "model_type": "gpt_neo",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "vocab_size": 300,
}
GEMMA3 = BLOCKS | {
    "model_type": "gemma3_text",
    "head_dim": 16,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
}
MIXTRAL = BLOCKS | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
T5: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "vocab_size": 300,
    "feed_forward_proj": "relu",
}
MARIAN: dict[str, Any] = {
    "model_type": "marian",
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": 3000,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
AUTOCAST = {"precision": "fp16", "weights_dtype": "fp32", "attention": "sdpa"}
RANKS = {"engine": "fsdp2", "gpus": 2, "fsdp": "full-shard", "weights_dtype": "fp32"}
NODES = RANKS | {"gpus": 8, "gpus_per_node": 4, "fsdp": "hybrid-shard"}
LORA = {"method": "lora", "lora_rank": 32, "lora_targets": "all-linear"}
DORA = {"method": "dora", "lora_targets": "all-linear", "checkpointing": "full"}
ADALORA = {"method": "adalora", "lora_rank": 4, "lora_targets": "all-linear"}
FOUR_BIT = {"quantization": "nf4", "kbit_preparation": True, "weights_dtype": "fp32"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # ``logits_chunk`` names the product before it names the sum with the bias.
    "chunks with a bias": (LOSS, PHI, {"method": "ia3", "loss": "liger", "precision": "fp32"}),
    # Gradients of matrices are no views: the second is added to the first.
    "a feed-forward part of matrices": (BACKWARD_LAST, OPT, LORA | {"precision": "fp32"}),
    # What a biased layer hands out is a view, and AdaLoRA adds to it in place.
    "a sum in a view": (BACKWARD_LAST, NEO, ADALORA | {"checkpointing": "full"}),
    # The mask and the tables of full layers go with the only one, which comes second.
    "tables of one kind of layer": (BACKWARD_FIRST, GEMMA3, {"checkpointing": "full"}),
    # The bias is there in fp32 while the kernel runs with its cast.
    "a bias that is cast": (FORWARD, T5 | {"num_heads": 8, "d_kv": 8}, AUTOCAST),
    # Beside a 4-bit layer DoRA's result stays fp32 under autocast; a variable holds attention's.
    "what DoRA hands on": (BACKWARD_LAST, STABLELM, FOUR_BIT | DORA | {"attention": "flash"}),
    # The loss is regularized while the model's output holds what the encoder made.
    "an encoder's output": (LOSS, T5, FOUR_BIT | ADALORA),
    # Factors are cast as a wrapper is entered, and B's gradient comes in another layout.
    "pairs within experts": (
        BACKWARD_LAST,
        MIXTRAL,
        LORA | {"lora_rank": 64, "checkpointing": "full", "adapter_dtype": "fp32"},
    ),
    # A buffer for the encoder's last block has been filled ahead.
    "gathered ahead of a decoder's embedding": (EMBEDDING_BACKWARD, MARIAN, RANKS),
    # What nodes sum stays; so do gradients, which are views of one buffer for each block.
    "summed by nodes": (BACKWARD_FIRST, LLAMA, NODES),
    "gradients of shards": (CLIPPING, MARIAN, RANKS | {"gpus": 8}),
    "gradients of shards, added up": (LOSS, MARIAN, NODES | {"grad_accum": 2}),
}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")
@pytest.mark.parametrize("case", CASES)
def test_equals_the_trace(case: str) -> None:
    """In the instant that the case is about."""
    instant, raw, options = CASES[case]
    given = {
        "precision": "bf16",
        "micro_batch": 2,
        "seq_len": 64,
        "attention": "eager",
        "optimizer": "sgd",
        **options,
    }
    config = resolve(from_hf_config(raw, name="test", source="test"), given)
    planned, trace = plan_config(config).memory, trace_step(trace_config(config, raw))
    seen = {one.name: one.bytes for one in trace.instants}
    # Rotary frequencies, a position's ids, the loss and its gradient, norms: the smallest blocks.
    assert planned.instants[instant] == pytest.approx(seen[instant], abs=10 * 512)
