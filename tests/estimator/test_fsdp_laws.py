"""FSDP: what sharding divides, what it adds, where offloading puts it."""

import pytest

from vram_plan.estimator import plan

ENGINES = ("fsdp1", "fsdp2")


@pytest.mark.parametrize("engine", ENGINES)
def test_states_never_rise_with_more_ranks(engine: str) -> None:
    sizes = [
        plan("llama-2-7b", engine=engine, gpus=n).memory.model_states_bytes
        for n in (1, 2, 4, 8, 16, 24, 64)
    ]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_sixteen_bytes_a_parameter_and_twenty_at_the_step(engine: str) -> None:
    """fp32 shards with bf16 compute: 4 + 4 + 8, and foreach AdamW's square roots."""
    memory = plan("7b", engine=engine, gpus=8, checkpointing="full").memory
    assert memory.model_states_bytes == pytest.approx(16 * 7e9 / 8, rel=1e-3)
    assert memory.instants["optimizer_step"] == pytest.approx(20 * 7e9 / 8, rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_keeping_weights_gathered_costs_memory(engine: str) -> None:
    full, kept = (
        plan("llama-2-7b", engine=engine, gpus=8, fsdp=fsdp).memory.instants
        for fsdp in ("full-shard", "grad-op")
    )
    assert kept["loss"] - full["loss"] > 2 * 6e9


@pytest.mark.parametrize("engine", ENGINES)
def test_hybrid_sharding_divides_within_a_node(engine: str) -> None:
    node = plan("llama-2-7b", engine=engine, gpus=8).memory.model_states_bytes
    nodes = plan(
        "llama-2-7b", engine=engine, gpus=32, gpus_per_node=8, fsdp="hybrid-shard"
    ).memory.model_states_bytes
    assert nodes == node


@pytest.mark.parametrize("engine", ENGINES)
def test_offloading_leaves_no_states_on_the_device(engine: str) -> None:
    memory = plan("7b", engine=engine, gpus=8, offload="optimizer+params").memory
    assert memory.model_states_bytes == 0
    assert memory.host_bytes == pytest.approx(16 * 7e9, rel=0.3)


@pytest.mark.parametrize("engine", ENGINES)
def test_four_bit_codes_are_sharded_and_integers_refused(engine: str) -> None:
    one, eight = (
        plan("llama-2-7b", engine=engine, gpus=n, method="qlora").memory.model_states_bytes
        for n in (1, 8)
    )
    assert eight < 0.35 * one
    with pytest.raises(ValueError, match="cannot shard integer weights"):
        plan("llama-2-7b", engine=engine, gpus=8, method="lora", quantization="int8")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_ledger_explains_every_byte(engine: str) -> None:
    memory = plan("llama-2-7b", engine=engine, gpus=8).memory
    for instant, total in memory.instants.items():
        entries = memory.ledger.at(instant)
        assert sum(entry.bytes for entry in entries) == total
        assert all(entry.name and entry.formula and entry.source for entry in entries)
