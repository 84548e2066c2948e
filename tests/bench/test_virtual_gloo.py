"""A virtual rank against ranks that really talk to each other, on real tensors."""

import socket
from dataclasses import replace
from typing import Any

import pytest

from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.virtual.case import ZeroCase
from vram_plan.bench.virtual.launch import launch
from vram_plan.bench.virtual.result import RankTrace

LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "tie_word_embeddings": False,
}
STAGES = (0, 1, 2, 3)


def case(stage: int, rank: int, **changes: Any) -> ZeroCase:
    document = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100_000},
    }
    step = TraceConfig(
        config=LLAMA, batch=2, seq=16, grad_accum=2, attention="eager", device="cpu", rules="cpu"
    )
    given = ZeroCase(step=step, deepspeed=document, ranks=2, rank=rank)
    return replace(given, **changes)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def seen() -> dict[tuple[str, int, int], RankTrace]:
    """(kind, stage, rank) → what it saw; kinds: real ranks, virtual ones, those on fake tensors."""
    cases = {}
    for stage in STAGES:
        port = free_port()
        for rank in (0, 1):
            cases["gloo", stage, rank] = case(stage, rank, group="gloo", port=port)
    for stage in STAGES:
        virtual = case(stage, 0)
        cases["virtual", stage, 0] = virtual
        cases["fake", stage, 0] = replace(virtual, step=replace(virtual.step, device="fake"))
    found = launch(list(cases.values()), timeout_seconds=300, together=2)
    good = {}
    for key, one in zip(cases, found, strict=True):
        assert isinstance(one, RankTrace), (key, one)
        good[key] = one
    return good


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["virtual", "fake"])
def test_live_bytes_equal_those_of_real_ranks(
    kind: str, stage: int, seen: dict[tuple[str, int, int], RankTrace]
) -> None:
    """Real ranks talk through gloo on copies, of which no tensor of the step is one.

    What gloo's threads held, and let go whenever they were scheduled, was a difference by luck.
    """
    real = seen["gloo", stage, 0].trace
    assert seen[kind, stage, 0].trace.phase_peaks == real.phase_peaks
