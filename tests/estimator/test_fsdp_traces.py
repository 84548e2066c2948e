"""FSDP's closed form against the library's own code, traced as rank 0 of N."""

from typing import Any

import pytest

from vram_plan.bench.proof.case import configured, paired, peak_of
from vram_plan.bench.proof.sample import Candidate
from vram_plan.bench.trace import TraceConfig, trace_step
from vram_plan.bench.translate import trace_config
from vram_plan.estimator import plan
from vram_plan.profiles.hf_config import from_hf_config

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1000,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 3001,
}
PHASES = {
    "loss": ("loss",),
    "backward": (
        "loss_backward",
        "backward_last_layer",
        "backward_first_layer",
        "embedding_backward",
    ),
    "clip": ("gradient_clipping",),
    "step": ("optimizer_step",),
}


def _compare(
    ranks: int,
    engine: str,
    *,
    model: dict[str, Any] | None = None,
    fsdp: str = "full-shard",
    weights_dtype: str = "fp32",
    **options: Any,
) -> None:
    """Every phase of plan and trace within 0.3 %."""
    shape = LLAMA | (model or {})
    spec = from_hf_config(shape, name="small", source="test")
    memory = plan(
        spec,
        gpus=ranks,
        engine=engine,
        fsdp=fsdp,
        weights_dtype=weights_dtype,
        micro_batch=2,
        seq_len=128,
        **options,
    ).memory
    config = TraceConfig(
        config=shape,
        batch=2,
        seq=128,
        engine=engine,
        ranks=ranks,
        fsdp=fsdp,
        dtype=weights_dtype,
        compute_dtype="bf16",
        attention="flash",
        **options,
    )
    traced = trace_step(config).phase_peaks
    for phase, instants in PHASES.items():
        planned = max(memory.instants.get(instant, 0) for instant in instants)
        assert planned == pytest.approx(traced[phase], rel=0.003), (phase, traced)


@pytest.mark.parametrize("ranks", [2, 8])
def test_fsdp2_equals_the_library(ranks: int) -> None:
    _compare(ranks, "fsdp2")


def test_fsdp2_with_checkpoints() -> None:
    _compare(4, "fsdp2", checkpointing="full")


def test_fsdp2_without_resharding() -> None:
    _compare(4, "fsdp2", fsdp="grad-op")


def test_fsdp2_with_frozen_weights() -> None:
    _compare(4, "fsdp2", method="lora", weights_dtype="bf16")


def test_fsdp2_with_tied_weights_and_accumulation() -> None:
    _compare(2, "fsdp2", grad_accum=2, model={"tie_word_embeddings": True})


@pytest.mark.parametrize("ranks", [2, 8])
def test_fsdp1_equals_the_library(ranks: int) -> None:
    _compare(ranks, "fsdp1")


def test_fsdp1_with_checkpoints() -> None:
    _compare(4, "fsdp1", checkpointing="full")


def test_fsdp1_with_adapters() -> None:
    _compare(4, "fsdp1", method="lora", weights_dtype="bf16")


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
PLAIN = {"model_type": "llama", "intermediate_size": 160, **SMALL}
WIDE_TABLES = {**PLAIN, "vocab_size": 8192}
LATER_EXPERTS = {
    "model_type": "deepseek_v3",
    "intermediate_size": 160,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    **SMALL,
}
HALF = {"precision": "fp16", "weights_dtype": "fp16", "attention": "sdpa"}
STEPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp32 adapters beside 16-bit weights": (PLAIN, {**HALF, "method": "lora"}),
    "4-bit weights, the rest in fp32": (
        PLAIN,
        {**HALF, "method": "lora", "quantization": "nf4", "kbit_preparation": True},
    ),
    "4-bit products in the gathered type": (
        PLAIN,
        {
            **HALF,
            "weights_dtype": "fp32",
            "method": "lora",
            "quantization": "fp4",
            "seq_len": 128,
            "attention": "eager",
            "loss": "fused-ce",
            "checkpointing": "full",
        },
    ),
    "the root's buffer beside the first block": (
        WIDE_TABLES,
        {**HALF, "method": "p-tuning-v2", "micro_batch": 1, "optimizer": "sgd", "loss": "liger"},
    ),
    "a last block that is larger than the one before": (
        LATER_EXPERTS,
        {"method": "full", "precision": "fp32", "weights_dtype": "fp32", "attention": "sdpa"},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_fsdp2_in_the_command_lines_words(name: str) -> None:
    """The plan and the trace of one configuration: the peak and its components."""
    model, options = STEPS[name]
    given = {"engine": "fsdp2", "gpus": 4, "micro_batch": 2, "seq_len": 64, **options}
    config = configured(Candidate(model=model, options=given))
    found = paired(config, peak_of(trace_step(trace_config(config, model))))
    assert found["planned"] == pytest.approx(found["traced"], rel=0.005)
    for component, (ours, theirs) in found["components"].items():
        assert abs(ours - theirs) <= 0.01 * found["traced"], component
