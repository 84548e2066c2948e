"""The closed form of DeepSpeed against DeepSpeed's real engine on virtual ranks."""

from typing import Any

import pytest

from vram_plan.bench.virtual import ZeroTrace, trace_zeros
from vram_plan.estimator import Plan, plan
from vram_plan.estimator.config import ZeroSizes
from vram_plan.estimator.ledger import Ledger
from vram_plan.estimator.sharding.zero_parts import REDUCTION
from vram_plan.estimator.step import CLIPPING, FORWARD, LOSS, OPTIMIZER_STEP, PASSES, TRAINING
from vram_plan.profiles.hf_config import from_hf_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
}
BUCKET = {"reduce_bucket_size": 500_000}
TIGHT = {
    "stage3_max_live_parameters": 800_000,
    "stage3_max_reuse_distance": 400_000,
    "stage3_prefetch_bucket_size": 100_000,
    "stage3_param_persistence_threshold": 2_560,
    "sub_group_size": 200_000,
}
TIED = {**LLAMA, "vocab_size": 8000, "tie_word_embeddings": True}
LORA: dict[str, Any] = {"method": "lora", "lora_rank": 8}


def case(
    stage: int,
    sizes: dict[str, Any] | None = None,
    model: dict[str, Any] = LLAMA,
    **options: Any,
) -> Plan:
    chosen = {"overlap_comm": stage == 3, **BUCKET, **(sizes or {})}
    given = {"gpus": 2, "gpus_per_node": 1, "seq_len": 16, "attention": "eager", **options}
    if given.get("method") == "lora":
        given["adapter_dtype"] = "bf16"
    return plan(
        from_hf_config(model, name="toy"),
        engine="deepspeed",
        zero=stage,
        zero_sizes=ZeroSizes(**chosen),
        **given,
    )


CASES = {
    "stage 0, 1 rank": case(0, gpus=1),
    "stage 0, 8 ranks": case(0, gpus=8),
    **{f"stage {s}, {n} ranks": case(s, gpus=n) for s in (1, 2, 3) for n in (1, 2, 4, 8)},
    "stage 1, 2 micro-batches": case(1, grad_accum=2),
    "stage 1, fp32 gradients": case(1, {"grad_accum_bytes": 4}),
    "stage 1, a large bucket and logits": case(1, {"reduce_bucket_size": 2_000_000}, seq_len=128),
    "stage 1, a prefix": case(1, method="p-tuning-v2", adapter_dtype="bf16", seq_len=128),
    "stage 2, 2 micro-batches": case(2, grad_accum=2),
    "stage 2, LoRA, checkpointing": case(2, checkpointing="full", **LORA),
    "stage 2, a tied head waits for the lookup": case(2, model=TIED, gpus=2),
    "stage 2, checkpoints on the host": case(
        2, checkpointing="offload", micro_batch=8, gpus=1, gpus_per_node=1, **LORA
    ),
    "stage 2, fp16": case(2, precision="fp16", weights_dtype="fp16", gpus=1),
    "stage 2, optimizer on the host": case(2, {"pin_memory": False}, offload="optimizer", gpus=1),
    "stage 2, flash": case(2, attention="flash", micro_batch=4, gpus=1),
    "stage 3, fp32": case(3, precision="fp32", weights_dtype="fp32"),
    "stage 3, tight limits": case(3, TIGHT),
    "stage 3, LoRA": case(3, **LORA),
    "stage 3, frozen layers keep their inputs": case(3, method="p-tuning-v2", adapter_dtype="bf16"),
    "stage 3, the loss reads the head's weight": case(3, loss="liger", micro_batch=4, **LORA),
    "stage 3, all on the host": case(3, offload="optimizer+params"),
}
"""Stage 0 divides nothing: every number of ranks between runs the same step."""
OF_COMPONENTS = (
    "stage 1, a large bucket and logits",
    "stage 1, a prefix",
    "stage 2, a tied head waits for the lookup",
)
PHASES = {
    "forward": {FORWARD},
    "loss": {LOSS},
    "backward": {*PASSES, REDUCTION} - {FORWARD, LOSS},
    "step": {CLIPPING, OPTIMIZER_STEP},
}


@pytest.fixture(scope="module")
def traced() -> dict[str, ZeroTrace]:
    found = trace_zeros(
        [(one.config, TIED if "tied" in name else LLAMA) for name, one in CASES.items()],
        timeout_seconds=600,
    )
    good = {}
    for name, one in zip(CASES, found, strict=True):
        assert isinstance(one, ZeroTrace), (name, one)
        good[name] = one
    return good


def predicted(name: str) -> dict[str, int]:
    entries = CASES[name].memory.ledger.entries
    totals = Ledger(dict.fromkeys((*TRAINING, REDUCTION)), entries).totals()
    return {phase: max(totals[i] for i in instants) for phase, instants in PHASES.items()}


def instants_by_phase(trace: ZeroTrace) -> dict[str, int]:
    """The same of the trace; instants that only it knows lie between two blocks going back."""
    phases = {instant: phase for phase, instants in PHASES.items() for instant in instants}
    peaks = dict.fromkeys(PHASES, 0)
    for one in trace.instants:
        phase = phases.get(one.name, "backward")
        peaks[phase] = max(peaks[phase], one.bytes)
    return peaks


@pytest.mark.parametrize("name", CASES)
def test_peak_of_the_step(name: str, traced: dict[str, ZeroTrace]) -> None:
    assert max(predicted(name).values()) == pytest.approx(traced[name].peak_bytes, rel=0.005)


@pytest.mark.parametrize("name", OF_COMPONENTS)
def test_components_at_the_peak(name: str, traced: dict[str, ZeroTrace]) -> None:
    """Wherever the first gradient makes the bucket; each within 2 % of the peak."""
    planned, seen = CASES[name].memory.components, traced[name].components()
    for component in planned.keys() | seen.keys():
        apart = abs(planned.get(component, 0) - seen.get(component, 0))
        assert apart <= 0.02 * traced[name].peak_bytes, component


@pytest.mark.parametrize("name", CASES)
def test_phases(name: str, traced: dict[str, ZeroTrace]) -> None:
    """Where the weights of one block come and go, the plan adds values of different moments.

    ZeRO 3 gathers the head behind the last block: with the loss, in the trace's instants too.
    """
    found, seen = predicted(name), instants_by_phase(traced[name])
    for phase in PHASES:
        assert found[phase] == pytest.approx(seen[phase], rel=0.015), phase


def test_adalora_finds_its_weights_gathered() -> None:
    """Its regularization reads them outside their modules, as transformers' Trainer lets it."""
    small = {"stage3_param_persistence_threshold": 1_000}
    planned = case(3, small, method="adalora", adapter_dtype="bf16")
    traced = trace_zeros([(planned.config, LLAMA)], timeout_seconds=300)[0]
    assert isinstance(traced, ZeroTrace), traced
    assert planned.memory.allocated_bytes == pytest.approx(traced.peak_bytes, rel=0.005)


@pytest.mark.parametrize("name", CASES)
def test_host(name: str, traced: dict[str, ZeroTrace]) -> None:
    assert CASES[name].memory.host_bytes == pytest.approx(traced[name].host_bytes, rel=1e-4)
