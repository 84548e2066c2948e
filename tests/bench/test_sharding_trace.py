"""What sharded traces say, and what they refuse."""

from typing import Any

import pytest
import torch

from vram_plan.bench.trace import Trace, TraceConfig, trace_step

MIB = 2**20


def traced(shape: dict[str, Any], **options: Any) -> Trace:
    return trace_step(TraceConfig(config=shape, batch=2, seq=64, **options))


def test_ddp_holds_a_copy_of_every_gradient(shapes: dict[str, dict[str, Any]]) -> None:
    alone, copied = traced(shapes["llama"]), traced(shapes["llama"], engine="ddp", ranks=8)
    more = copied.components("step")["buffers"] - alone.components("step").get("buffers", 0)
    assert more == pytest.approx(alone.components("step")["gradients"], abs=8192)
    assert copied.phase_peaks["step"] - alone.phase_peaks["step"] == more


def test_ddp_buckets_are_torchs() -> None:
    """Rebuilt in the order of the gradients: one of 1 MiB at least, then of 25 MiB at least.

    torch/csrc/distributed/c10d/reducer.cpp ``compute_bucket_assignment_by_size``: a bucket is
    closed once it has reached its limit.
    """
    shape = {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 512,
    }
    trace = traced(shape, engine="ddp", ranks=2)
    buckets = [b.bytes for b in trace.start_blocks if b.component == "buffers" and b.bytes > 8192]
    assert min(buckets) == 512 * 1024 * 2  # the head comes first and fills the small one
    layer = 2 * (4 * 1024 * 1024 + 3 * 1024 * 4096)
    assert sum(buckets) == pytest.approx(4 * layer + 2 * 2 * 512 * 1024, rel=1e-3)
    assert sum(size >= 25 * MIB for size in buckets) == 4


def test_fsdp2_divides_states(shapes: dict[str, dict[str, Any]]) -> None:
    options: dict[str, Any] = {"engine": "fsdp2", "dtype": "fp32", "compute_dtype": "bf16"}
    for ranks in (2, 8):
        trace = traced(shapes["llama"], ranks=ranks, **options)
        parts = trace.components("step")
        share = 4 * trace.parameters / ranks
        assert parts["weights"] == pytest.approx(share, rel=0.02)
        # a unit's gradients are one tensor, its weights several, each rounded up
        assert parts["gradients"] == pytest.approx(parts["weights"], abs=8192)
        assert parts["optimizer_states"] == 2 * parts["weights"]


def test_what_is_gathered_is_given_back(shapes: dict[str, dict[str, Any]]) -> None:
    trace = traced(shapes["llama"], engine="fsdp2", ranks=4)
    assert trace.events[-1].live == trace.start_bytes
    gathered = [e for e in trace.events if e.block.op == "resize" and e.delta > 0]
    assert {e.block.component for e in gathered} == {"temporaries"}
    assert {e.block.module for e in gathered} == {"model", "model.layers.0", "model.layers.1"}


def test_grad_op_keeps_blocks_gathered(shapes: dict[str, dict[str, Any]]) -> None:
    options: dict[str, Any] = {"engine": "fsdp2", "ranks": 4}
    full = traced(shapes["llama"], **options)
    kept = traced(shapes["llama"], fsdp="grad-op", **options)
    assert kept.components("loss")["temporaries"] > full.components("loss")["temporaries"]
    assert kept.phase_peaks["step"] == full.phase_peaks["step"]


def test_hybrid_sharding_divides_within_a_node(shapes: dict[str, dict[str, Any]]) -> None:
    node = traced(shapes["llama"], engine="fsdp2", ranks=4)
    hybrid = traced(
        shapes["llama"], engine="fsdp2", ranks=16, fsdp="hybrid-shard", ranks_per_node=4
    )
    assert hybrid.components("step") == pytest.approx(node.components("step"), abs=2048)


def test_4_bit_weights_are_sharded_as_words(shapes: dict[str, dict[str, Any]]) -> None:
    options: dict[str, Any] = {"method": "lora", "quantization": "nf4", "engine": "fsdp2"}
    trace = traced(shapes["llama"], ranks=4, **options)
    block = 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512)
    codes = [b for b in trace.start_blocks if b.shape[1:] == (1,) and b.op == "new_zeros"]
    assert sum(b.bytes for b in codes) == block // 2 // 4
    assert {b.dtype for b in codes} == {"bf16"}


def test_tensor_parallel_divides_every_layer(shapes: dict[str, dict[str, Any]]) -> None:
    alone, half = traced(shapes["llama"]), traced(shapes["llama"], tp=2)
    assert half.parameters == alone.parameters
    # embeddings, head and linear layers are divided; norms (256 weights each) are whole
    norms = 5 * 256 * 2
    weights = alone.components("step")["weights"]
    assert half.components("step")["weights"] == pytest.approx((weights + norms) / 2, rel=1e-3)
    assert half.peak_bytes < alone.peak_bytes


def test_no_process_group_is_left(shapes: dict[str, dict[str, Any]]) -> None:
    traced(shapes["llama"], engine="fsdp2", ranks=4)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 2}, "ranks 2 with engine torch: choose engine ddp"),
        ({"fsdp": "grad-op"}, "fsdp grad-op with engine torch: choose engine fsdp2"),
        ({"engine": "ddp", "ranks": 2, "tp": 2}, "tp 2 with engine ddp"),
        ({"engine": "ddp", "ranks": 2, "compute_dtype": "bf16"}, "it is FSDP's; use autocast"),
        ({"engine": "fsdp1", "fsdp": "hybrid-shard"}, "choose engine fsdp2"),
        ({"engine": "fsdp2", "ranks": 12, "fsdp": "hybrid-shard"}, "12 ranks are not divisible"),
        ({"engine": "fsdp2", "quantization": "int8"}, "cannot shard integer weights"),
        ({"engine": "zero"}, "engine 'zero' is not one of"),
        ({"ranks": 0}, "ranks must be at least 1"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TraceConfig(config={"model_type": "llama"}, **options)


def test_models_without_a_plan_are_refused(shapes: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="no tensor-parallel plan for BertForMaskedLM"):
        traced(shapes["bert"], tp=2)
