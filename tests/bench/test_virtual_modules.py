"""Moments that hang on a model's own modules, most under ZeRO-3, against DeepSpeed's engine."""

from typing import Any

import pytest

from vram_plan.bench.proof.case import paired, peak_of
from vram_plan.bench.virtual import ZeroTrace, trace_zeros
from vram_plan.estimator import Plan, plan
from vram_plan.estimator.config import ZeroSizes
from vram_plan.profiles.hf_config import from_hf_config

_COMMON = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "falcon": {**_COMMON, "multi_query": True, "new_decoder_architecture": False},
    "phi3": {**_COMMON, "num_key_value_heads": 4, "pad_token_id": 0},
    "llama": {**_COMMON, "num_key_value_heads": 2},
    "olmo": {**_COMMON, "num_key_value_heads": 2},
    "electra": {**_COMMON, "embedding_size": 256},
    "qwen3_moe": {
        **_COMMON,
        "num_key_value_heads": 2,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
    },
    "gpt_neo": {
        "hidden_size": 64,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 4,
        "vocab_size": 1000,
        "tie_word_embeddings": True,
    },
    "mpt": {
        "d_model": 128,
        "n_layers": 2,
        "n_heads": 8,
        "expansion_ratio": 4,
        "vocab_size": 500,
        "max_seq_len": 128,
        "tie_word_embeddings": True,
    },
    "gptj": {
        "n_embd": 512,
        "n_layer": 2,
        "n_head": 8,
        "vocab_size": 1000,
        "n_positions": 64,
        "rotary_dim": 32,
        "tie_word_embeddings": False,
    },
}


def case(family: str, zero: int = 3, **options: Any) -> tuple[Plan, dict[str, Any]]:
    """A plan on two GPUs with its model's fields."""
    fields = {"model_type": family, **MODELS[family]}
    given = {"gpus": 2, "gpus_per_node": 2, "adapter_dtype": "bf16", "seq_len": 64, **options}
    sizes = ZeroSizes(reduce_bucket_size=500_000, overlap_comm=True)
    model = from_hf_config(fields, name="toy")
    return plan(model, engine="deepspeed", zero=zero, zero_sizes=sizes, **given), fields


CASES = {
    "FalconLinear keeps no inputs": case("falcon", method="bitfit", micro_batch=4),
    "no gradient passes through the first target": case("phi3", method="adalora", micro_batch=4),
    "codes of 4 bits are counted in bytes": case("llama", method="qlora", micro_batch=2),
    "a layer's own codes take the gathered ones' place": case(
        "llama", method="lora", quantization="int8"
    ),
    "no norm before the head": case("olmo", method="qlora", grad_accum=2),
    "no gradient for tables of positions": case("electra", method="lora", checkpointing="full"),
    "experts are one module": case("qwen3_moe", method="freeze", freeze_layers=1, micro_batch=8),
    "a small weight's copy": case("gpt_neo", method="lora", loss="chunked", seq_len=96),
    "scores are a local variable": case(
        "mpt", 0, method="dora", attention="eager", micro_batch=3, seq_len=128
    ),
    "a product is there before it saves": case(
        "llama",
        method="ia3",
        checkpointing="full",
        attention="eager",
        grad_accum=2,
        micro_batch=4,
        seq_len=128,
    ),
    "one gradient makes the bucket and fills it": case(
        "llama", 2, method="p-tuning-v2", loss="liger", quantization="nf4"
    ),
    "keys behind a prefix are copied": case("gptj", 0, method="p-tuning-v2", micro_batch=3),
}


@pytest.fixture(scope="module")
def traced() -> dict[str, ZeroTrace]:
    """Every case on virtual ranks."""
    found = trace_zeros([(one.config, fields) for one, fields in CASES.values()])
    good = {}
    for name, one in zip(CASES, found, strict=True):
        assert isinstance(one, ZeroTrace), (name, one)
        good[name] = one
    return good


@pytest.mark.parametrize("name", CASES)
def test_peak_and_components(name: str, traced: dict[str, ZeroTrace]) -> None:
    """The peak within 0.5 %, every component in the peak's instant within 2 % of it."""
    found = paired(CASES[name][0].config, peak_of(traced[name]))
    assert found["planned"] == pytest.approx(found["traced"], rel=0.005)
    for component, (planned, seen) in found["components"].items():
        assert abs(planned - seen) <= 0.02 * found["traced"], component


def test_buffers_keep_their_dtype() -> None:
    """DeepSpeed 0.19.8 casts weights alone; GPT-J's table of sines is a buffer of fp32."""
    from vram_plan.bench.virtual.case import zero_case
    from vram_plan.bench.virtual.worker import zero_model

    planned, fields = case("gptj", 1, attention="eager")
    model = zero_model(zero_case(planned.config, fields))
    assert {str(weight.dtype) for weight in model.parameters()} == {"torch.bfloat16"}
    assert {str(buffer.dtype) for buffer in model.buffers()} == {"torch.float32"}
    tables = sum(buffer.nbytes for buffer in model.buffers())
    buffers = [e.bytes for e in planned.memory.ledger.entries if e.name == "buffers of the model"]
    assert buffers == [tables]
