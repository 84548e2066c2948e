"""What a rank's process says of itself: its components, its refusals, its failures."""

from dataclasses import replace
from typing import Any

import pytest

from vram_plan.bench.virtual import VirtualRankError, ZeroTrace, trace_zero, trace_zeros
from vram_plan.bench.virtual.case import ZeroCase, zero_case
from vram_plan.bench.virtual.launch import launch
from vram_plan.bench.virtual.partitions import fullest_rank
from vram_plan.estimator import Plan, plan
from vram_plan.estimator.config import ZeroSizes
from vram_plan.profiles.hf_config import from_hf_config

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


def planned(stage: int, **options: Any) -> Plan:
    sizes = ZeroSizes(reduce_bucket_size=50_000, overlap_comm=stage == 3)
    given = {"gpus": 4, "gpus_per_node": 2, "seq_len": 16, "zero_sizes": sizes, **options}
    return plan(from_hf_config(LLAMA, name="toy"), engine="deepspeed", zero=stage, **given)


PLANS = {
    "full": planned(2),
    "gathered": planned(3, micro_batch=4),
    "on the host": planned(2, offload="optimizer"),
    "8-bit states": planned(1, optimizer="adamw-8bit"),
    "paged states": planned(1, optimizer="paged-adamw"),
    "half": planned(0, precision="fp16", weights_dtype="fp16"),
}


@pytest.fixture(scope="module")
def seen() -> dict[str, ZeroTrace | Exception]:
    configs = {name: one.config for name, one in PLANS.items()}
    configs["bitfit"] = replace(configs["full"], method="bitfit")  # Llama has no biases
    found = trace_zeros([(one, LLAMA) for one in configs.values()], timeout_seconds=300)
    return dict(zip(configs, found, strict=True))


def traced(seen: dict[str, ZeroTrace | Exception], name: str) -> ZeroTrace:
    found = seen[name]
    assert isinstance(found, ZeroTrace), found
    return found


@pytest.mark.parametrize("name", ["full", "gathered", "half"])
def test_components_are_those_of_the_plan(
    name: str, seen: dict[str, ZeroTrace | Exception]
) -> None:
    one, memory = traced(seen, name), PLANS[name].memory
    parts = one.components("step")
    totals: dict[str, int] = {}
    for entry in memory.ledger.entries:
        if entry.state and entry.place == "device" and entry.component != "gradients":
            totals[entry.component] = totals.get(entry.component, 0) + entry.bytes
    for component, nbytes in totals.items():
        assert parts[component] == pytest.approx(nbytes, rel=0.01, abs=4096), component
    assert sum(parts.values()) == one.phase_peaks["step"]


def test_all_layers_are_run(seen: dict[str, ZeroTrace | Exception]) -> None:
    one = traced(seen, "full")
    assert one.layers == 2
    assert one.extended_from is None
    assert one.parameters == PLANS["full"].parameters
    assert one.versions["deepspeed"]
    assert {instant.name for instant in one.instants} >= {"forward", "loss", "optimizer_step"}
    assert max(instant.bytes for instant in one.instants) == one.peak_bytes


def test_host_memory_is_that_of_a_node(seen: dict[str, ZeroTrace | Exception]) -> None:
    one, memory = traced(seen, "on the host"), PLANS["on the host"].memory
    assert one.host_bytes == pytest.approx(memory.host_bytes, rel=1e-4)
    assert "optimizer_states" not in one.components()
    assert any("host" in note for note in one.notes)


def test_other_optimizers_run(seen: dict[str, ZeroTrace | Exception]) -> None:
    states = traced(seen, "8-bit states").components("step")["optimizer_states"]
    share = PLANS["8-bit states"].parameters / 4
    assert states == pytest.approx(2 * share, rel=0.05)


def test_paged_states_are_on_the_host(seen: dict[str, ZeroTrace | Exception]) -> None:
    one = traced(seen, "paged states")
    assert one.components("step").get("optimizer_states", 0) == 0
    assert one.host_components["optimizer_states"] == pytest.approx(
        2 * 2 * 4 * PLANS["paged states"].parameters / 4, rel=0.05
    )


def test_nothing_to_train_is_refused(seen: dict[str, ZeroTrace | Exception]) -> None:
    refusal = seen["bitfit"]
    assert isinstance(refusal, ValueError)
    assert "leaves nothing to train" in str(refusal)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"optimizer": "muon"}, "muon"),
        ({"offload": "optimizer", "offload_device": "nvme", "zero": 3}, "nvme"),
    ],
)
def test_refusals_name_the_option(options: dict[str, Any], word: str) -> None:
    config = replace(PLANS["full"].config, **options)
    with pytest.raises(ValueError, match=word):
        trace_zero(config, LLAMA)


def test_a_configuration_without_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="--zero"):
        zero_case(replace(PLANS["full"].config, zero=None), LLAMA)


def test_a_slow_process_is_ended() -> None:
    with pytest.raises(VirtualRankError, match="more than 0 s") as raised:
        trace_zero(PLANS["full"].config, LLAMA, timeout_seconds=0.2)
    assert raised.value.outcome == "timeout"


def test_a_failing_library_is_an_error_with_its_message() -> None:
    case = zero_case(PLANS["full"].config, LLAMA)
    broken = replace(case, deepspeed={**case.deepspeed, "gradient_accumulation_steps": -1})
    found = launch([broken])[0]
    assert isinstance(found, VirtualRankError)
    assert found.outcome == "error"
    assert "AssertionError" in str(found)


def test_a_case_travels_as_json() -> None:
    case = zero_case(PLANS["gathered"].config, LLAMA)
    assert ZeroCase.from_json(case.to_json()) == case


def test_the_largest_partition_counts_cut_weights_whole() -> None:
    assert fullest_rank([10, 2, 2, 2], 2) == 1
    assert fullest_rank([2, 2, 2, 10], 2) == 0
    assert fullest_rank([2, 2, 2, 10], 2, besides=(0,)) == 1
    assert fullest_rank([4], 4) in range(4)


def test_a_zero_trace_needs_a_rank() -> None:
    with pytest.raises(ValueError, match="at least one rank"):
        ZeroTrace(ranks=2, seen=())
