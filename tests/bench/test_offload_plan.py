"""Every saved tensor, or every checkpoint, on the host: the closed form against the trace."""

from typing import Any

import pytest

from vram_plan.bench.trace import trace_step
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.hf_config import from_hf_config

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_key_value_heads": 2,
    **SMALL,
}
GPTJ = {"model_type": "gptj", "n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8}
GPTJ |= {"vocab_size": 500, "bos_token_id": 0, "eos_token_id": 0}
QWEN_MOE = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 16,
}
BART = {
    "model_type": "bart",
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 500,
}
T5 = {
    "model_type": "t5",
    "d_model": 64,
    "d_ff": 128,
    "d_kv": 16,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 500,
}
AWAY = {"offload": "activations"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a weight comes back for each product": (LLAMA, {**AWAY, "method": "full"}),
    "a view comes back alone": (GPTJ, {**AWAY, "method": "full", "attention": "flash"}),
    "a mask comes back expanded": (T5, {**AWAY, "attention": "sdpa", "source_len": 96}),
    "the head comes back for each chunk": (LLAMA, {**AWAY, "loss": "chunked"}),
    "a gradient made early comes back": (LLAMA, {**AWAY, "loss": "liger", "method": "full"}),
    "outputs hold the last block's probabilities": (GPTJ, {**AWAY, "attention": "eager"}),
    "a variable holds the experts' weights": (QWEN_MOE, AWAY),
    "what B·A was made from does not stay": (
        LLAMA,
        {**AWAY, "method": "dora", "quantization": "nf4", "loss": "chunked"},
    ),
    "an encoder of prompts": (LLAMA, {**AWAY, "method": "p-tuning"}),
    "all of a checkpoint's arguments": (BART, {"checkpointing": "offload", "source_len": 96}),
}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")
@pytest.mark.parametrize("case", CASES)
def test_the_plan_equals_the_trace(case: str) -> None:
    shape, options = CASES[case]
    chosen = {"method": "lora", "micro_batch": 2, "seq_len": 128, "attention": "eager", **options}
    config = resolve(from_hf_config(shape, name="small", source="test"), chosen)
    traced = trace_step(trace_config(config, shape)).peak_bytes
    assert plan_config(config).memory.allocated_bytes == pytest.approx(traced, rel=0.005)


@pytest.mark.parametrize("optimizer", ["paged-adamw", "paged-adamw-8bit"])
def test_paged_states_are_the_hosts(optimizer: str) -> None:
    shape = LLAMA | {"hidden_size": 512, "intermediate_size": 512}
    chosen = {"method": "full", "attention": "eager", "seq_len": 32, "optimizer": optimizer}
    config = resolve(from_hf_config(shape, name="small", source="test"), chosen)
    assert (
        plan_config(config).memory.host_bytes == trace_step(trace_config(config, shape)).host_bytes
    )
