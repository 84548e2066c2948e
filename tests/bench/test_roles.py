"""What a trace calls its tensors is what the plan calls them; what no library runs is refused."""

from typing import Any

import pytest

from vram_plan.bench.proof.case import configured, paired, peak_of
from vram_plan.bench.proof.sample import Candidate
from vram_plan.bench.translate import trace_config

pytest.importorskip("torch")
pytest.importorskip("peft")

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "tie_word_embeddings": False,
}
PHIMOE = {**LLAMA, "model_type": "phimoe", "num_local_experts": 4, "num_experts_per_tok": 2}
TIED = {**LLAMA, "tie_word_embeddings": True}
ADAPTED = {"method": "lora", "lora_rank": 8, "adapter_dtype": "fp32"}
BLOOM = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 511}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 511}
PREFIXED = {"method": "prefix", "virtual_tokens": 20, "weights_dtype": "fp32", "loss": "chunked"}
PLAIN = {"weights_dtype": "bf16", "optimizer": "sgd", "attention": "eager", "loss": "hf"}
WIDE = {"precision": "fp16", "weights_dtype": "fp32"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a tied weight's gradient waits": (TIED, {"loss": "fused-ce", "checkpointing": "full"}),
    "chunks of a loss": (LLAMA, {**ADAPTED, "loss": "chunked", **WIDE}),
    "a fused loss": (LLAMA, {"loss": "liger"}),
    "DoRA's norms": (LLAMA, {**ADAPTED, "method": "dora", "checkpointing": "full"}),
    "int8 under autocast, repeated": (
        LLAMA,
        {**ADAPTED, **WIDE, "method": "dora", "quantization": "int8", "checkpointing": "full"},
    ),
    "an input's gradient of its weight's shape": (
        {**LLAMA, "vocab_size": 64},
        {"micro_batch": 1, "loss": "liger", "checkpointing": "full"},
    ),
    "weights written out": (LLAMA, {**ADAPTED, "quantization": "nf4", "micro_batch": 8}),
    "checkpoints on the host": (LLAMA, {**ADAPTED, "checkpointing": "offload"}),
    "AdaLoRA, selective": (
        LLAMA,
        {**ADAPTED, "method": "adalora", "checkpointing": "selective"},
    ),
    "fp32 prefixes, autocast": (GPT2, PREFIXED),
    "the lookup before BLOOM's norm, keys of a prefix in its mask": (BLOOM, PREFIXED),
}


@pytest.mark.parametrize("name", CASES)
def test_components_are_the_plans(name: str) -> None:
    from vram_plan.bench.trace import trace_step

    model, options = CASES[name]
    given = {"micro_batch": 4, "seq_len": 128, **PLAIN, **options}
    config = configured(Candidate(model=model, options=given))
    found = paired(config, peak_of(trace_step(trace_config(config, model))))
    peak = found["traced"]
    assert found["planned"] == pytest.approx(peak, rel=0.005)
    for component, (ours, theirs) in found["components"].items():
        assert abs(ours - theirs) <= 0.01 * peak, component


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bitsandbytes over DTensor": (
        LLAMA,
        {"engine": "fsdp2", "gpus": 4, "optimizer": "adamw-8bit"},
        "sharded weights; choose adamw",
    ),
    "AdaLoRA over DTensor": (
        LLAMA,
        {**ADAPTED, "method": "adalora", "engine": "fsdp2", "gpus": 4},
        "choose --method lora",
    ),
    "Muon over one row of a DTensor": (
        LLAMA,
        {**ADAPTED, "method": "ia3", "engine": "fsdp2", "gpus": 4, "optimizer": "muon"},
        "choose adamw",
    ),
    "AdaLoRA on a router that returns a tuple": (
        PHIMOE,
        {**ADAPTED, "method": "adalora"},
        "choose --lora-targets attention",
    ),
    "LoRA on a router that returns a tuple": (
        PHIMOE,
        {**ADAPTED, "lora_targets": "q_proj,router"},
        "choose --lora-targets attention",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_fails_in_training_is_refused(name: str) -> None:
    model, options, way_out = REFUSED[name]
    config = configured(Candidate(model=model, options=options))
    with pytest.raises(ValueError, match=way_out):
        trace_config(config, model)
