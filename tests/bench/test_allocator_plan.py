"""The plan's own timeline, replayed: it allocates what the plan says and leaks nothing."""

from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from vram_plan.bench.allocator import AllocatorSettings, replay_trace
from vram_plan.bench.trace import Trace, TraceConfig, trace_step
from vram_plan.estimator import reserved
from vram_plan.estimator.planner import plan, plan_config
from vram_plan.estimator.reserved import replay_run, run_changes
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.gpus import load_gpus
from vram_plan.profiles.hf_config import from_hf_config
from vram_plan.profiles.models import resolve_model

MIB = 2**20
RUNS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, checkpoints": {"method": "full", "checkpointing": "full"},
    "autocast": {"method": "full", "weights_dtype": "fp32"},
    "lora": {"method": "lora"},
    "lora, checkpoints": {"method": "lora", "checkpointing": "full"},
    "lora, liger": {"method": "lora", "loss": "liger", "checkpointing": "full"},
    "qlora": {"method": "qlora", "checkpointing": "full"},
    "selective": {"method": "full", "checkpointing": "selective"},
    "offloaded checkpoints": {"method": "full", "checkpointing": "offload"},
    "paged out": {"method": "full", "offload": "activations"},
    "accumulated": {"method": "full", "grad_accum": 4},
    "ddp": {"method": "full", "gpus": 2},
    "8-bit": {"method": "full", "optimizer": "adamw-8bit"},
    "for-loop": {"method": "full", "optimizer": "adamw-for-loop"},
    "ia3": {"method": "ia3"},
}


@pytest.mark.parametrize("name", RUNS)
def test_it_allocates_what_the_plan_says(name: str) -> None:
    config = resolve(resolve_model("tinyllama-1.1b"), {"seq_len": 1024, **RUNS[name]})
    planned = plan_config(config)
    memory, found = planned.memory, replay_run(config)
    seen = found.stats.requested_peak - memory.workspace_bytes
    assert seen == pytest.approx(memory.allocated_bytes, rel=2e-3)
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes >= memory.allocated_bytes + memory.workspace_bytes
    outside = memory.overhead_bytes - memory.workspace_bytes
    assert memory.device_bytes == memory.reserved_bytes + outside
    assert outside >= 500 * MIB
    assert memory.reserved_bytes is memory.reserved_bytes, "worked out once"


@pytest.mark.parametrize("name", RUNS)
def test_nothing_leaks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(resolve_model("tinyllama-1.1b"), {"seq_len": 512, **RUNS[name]})
    left = []
    for steps in (1, 2, 3):
        monkeypatch.setattr(reserved, "STEPS", steps)
        left.append(sum(delta for _, delta in run_changes(config)))
    assert left[0] == left[1] == left[2]
    entries = plan_config(config).memory.ledger.entries
    lasting = sum(e.bytes for e in entries if e.state and e.component != "gradients")
    lasting += sum(e.bytes for e in entries if e.name == "DDP gradient buckets")
    overhead = plan_config(config).memory.workspace_bytes
    assert left[0] == pytest.approx(lasting + overhead, rel=2e-3)


def test_numbers_are_used_once() -> None:
    config = resolve(resolve_model("tinyllama-1.1b"), {"seq_len": 512, "method": "lora"})
    live: set[int] = set()
    born = [number for number, delta in run_changes(config) if delta > 0]
    assert all(before < after for before, after in pairwise(born))
    for number, delta in run_changes(config):
        if delta > 0:
            live.add(number)
        else:
            live.remove(number)


FAMILIES = ("gpt2", "bert-base-uncased", "bloom-560m", "gemma-2-2b", "qwen2.5-0.5b", "olmoe-1b-7b")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"method": "full"}, {"method": "lora"}])
def test_every_family(family: str, options: dict[str, Any]) -> None:
    planned = plan(family, seq_len=128, checkpointing="full", **options)
    found = replay_run(planned.config)
    seen = found.stats.requested_peak - planned.memory.workspace_bytes
    assert seen == pytest.approx(planned.memory.allocated_bytes, rel=3e-3)


def test_an_encoder_decoder_too() -> None:
    planned = plan("t5-base", seq_len=256, source_len=512)
    found = replay_run(planned.config)
    seen = found.stats.requested_peak - planned.memory.workspace_bytes
    assert seen == pytest.approx(planned.memory.allocated_bytes, rel=3e-3)


def test_a_size_class_is_scaled() -> None:
    memory = plan("7b", method="lora").memory
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes >= memory.allocated_bytes


@pytest.mark.parametrize("options", [{"zero": 2, "gpus": 8}, {"task": "inference"}])
def test_what_is_not_modelled_is_none(options: dict[str, object]) -> None:
    memory = plan("llama-2-7b", **options).memory
    assert memory.reserved_bytes is None
    assert memory.device_bytes is None


def test_a_full_card_bounds_it() -> None:
    """Mistral-7B, all weights, 8 × 4096 tokens: cached segments are given back on 80 GB."""
    options = {"seq_len": 4096, "micro_batch": 8, "checkpointing": "full"}
    free = plan("mistralai/Mistral-7B-v0.1", **options).memory
    bound = plan("mistralai/Mistral-7B-v0.1", gpu=load_gpus()["a100-80gb-sxm"], **options)
    assert bound.config.gpu is not None
    assert free.reserved_bytes is not None
    assert bound.memory.reserved_bytes is not None
    assert bound.memory.device_bytes is not None
    assert free.reserved_bytes > bound.config.gpu.usable_bytes
    assert bound.memory.device_bytes <= bound.config.gpu.usable_bytes


SHAPE = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 16000,
}
TRACED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": (
        {"method": "lora", "checkpointing": "full"},
        {"method": "lora", "lora": {"r": 16, "target_modules": "all-linear"}},
    ),
    "full": ({"method": "full"}, {"method": "full"}),
}


@cache
def traced(name: str) -> Trace:
    options, changed = TRACED[name]
    checkpointing = options.get("checkpointing", "none")
    common = {"batch": 4, "seq": 1024, "attention": "flash", "checkpointing": checkpointing}
    return trace_step(TraceConfig(config=SHAPE, history=True, **common, **changed))


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("expandable", [False, True])
def test_equals_a_replayed_trace(name: str, expandable: bool) -> None:
    """The plan's timeline makes the allocator reserve what the real libraries' timeline does."""
    model = from_hf_config(SHAPE, name="small")
    config = resolve(model, {"seq_len": 1024, "micro_batch": 4, **TRACED[name][0]})
    settings = AllocatorSettings(expandable_segments=expandable)
    theirs, ours = replay_trace(traced(name), settings), replay_run(config, settings)
    workspaces = plan_config(config).memory.workspace_bytes
    requested = ours.stats.requested_peak - workspaces
    assert requested == pytest.approx(theirs.stats.requested_peak, rel=0.01)
    assert ours.reserved_peak_bytes == pytest.approx(theirs.reserved_peak_bytes, rel=0.04)
