"""Sequences that differ in length, and what the allocator reserves for them."""

from dataclasses import replace
from functools import partial

import pytest

from vram_plan.estimator.allocator import replay
from vram_plan.estimator.lengths import SEQUENCES, Epoch, parse_lengths, records
from vram_plan.estimator.planner import plan, plan_config
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.recording import record
from vram_plan.estimator.reserved import run_changes
from vram_plan.estimator.varied import Lengths
from vram_plan.profiles.gpus import find_gpu

EPOCH = Epoch(mean=1000, deviation=800, sequences=5000)
MIB = 2**20


def test_what_is_typed() -> None:
    assert parse_lengths("fixed") is None
    assert parse_lengths("1000,800,5000") == EPOCH
    assert parse_lengths("1000,800") == replace(EPOCH, sequences=SEQUENCES)


@pytest.mark.parametrize(
    "text", ["", "1", "x,y", "0,1", "1,0", "-3,2", "1,2,0", "1,2,3,4", "nan,1"]
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--lengths"):
        plan("gpt2", lengths=text)


def test_records_rise_to_the_limit() -> None:
    for seed in range(5):
        found = records(EPOCH, limit=2048, micro_batch=1, ranks=1, seed=seed)
        assert found == sorted(found)
        assert 1 <= found[0] <= found[-1] <= 2048
        assert found[-1] > 1900
        assert len(found) < 30
    assert found == records(EPOCH, limit=2048, micro_batch=1, ranks=1, seed=seed)


def test_large_micro_batches_differ_less() -> None:
    alone = records(EPOCH, limit=2048, micro_batch=1, ranks=1, seed=1)
    many = records(EPOCH, limit=2048, micro_batch=64, ranks=1, seed=1)
    assert many[0] > alone[0]


def test_a_limit_below_every_sequence() -> None:
    narrow = Epoch(mean=10_000, deviation=1, sequences=10)
    assert records(narrow, limit=128, micro_batch=2, ranks=4, seed=0) == [128]


@pytest.mark.parametrize("options", [{"method": "lora"}, {"attention": "eager"}])
def test_sizes_between_three_lengths(options: dict[str, str]) -> None:
    """A chain at a length, from the polynomial, is the chain run at that length."""
    config = plan("qwen2.5-0.5b", checkpointing="full", seq_len=1024, **options).config

    def at(length: int) -> object:
        return run_passes(replace(config, seq_len=length), keeps_gradients=True)

    length = 640
    scaled = Lengths(at, 1024).at(length)  # type: ignore[arg-type]
    links = run_passes(replace(config, seq_len=length), keeps_gradients=True).links
    exact = [record(link.run) for link in links if link.run is not None]
    firsts = [piece.recording for piece in scaled.pieces]
    assert len(firsts) == sum(link.count for link in links if link.run is not None)
    for mine, theirs in ((firsts[0], exact[0]), (firsts[1], exact[1]), (firsts[-1], exact[-1])):
        assert [n for n, _ in mine.forward] == [n for n, _ in theirs.forward]
        pairs = zip(mine.forward, theirs.forward, strict=True)
        assert all(abs(one[1] - other[1]) <= 1024 for one, other in pairs)


def test_lengths_reserve_more_and_allocate_the_same() -> None:
    whole = partial(
        plan,
        "qwen2.5-0.5b",
        method="lora",
        checkpointing="full",
        seq_len=2048,
        gpu=find_gpu("a100-80gb-sxm"),
    )
    fixed, varied = whole().memory, whole(lengths="1000,800,5000").memory
    assert varied.allocated_bytes == fixed.allocated_bytes
    assert fixed.reserved_bytes is not None
    assert varied.reserved_bytes is not None
    assert varied.reserved_bytes > fixed.reserved_bytes


def test_every_storage_is_given_back() -> None:
    config = plan("qwen2.5-0.5b", seq_len=512, lengths="300,200,500", grad_accum=4).config
    fixed = replace(config, lengths="fixed")
    left = sum(delta for _, delta in run_changes(config))
    assert left == sum(delta for _, delta in run_changes(fixed))
    assert replay(run_changes(config)).outcome == "ok"


def test_engines_without_a_replay_say_so() -> None:
    found = plan("llama-2-7b", zero=2, gpus=8, lengths="1000,800")
    assert any("--lengths" in note for note in found.config.assumptions)
    with pytest.raises(ValueError, match="--lengths"):
        plan("t5-base", lengths="1000,800")


def test_workspaces_are_listed_where_a_gpu_is_named() -> None:
    bare = plan("gpt2")
    for name, one in (("a100-80gb-sxm", 8_519_680), ("h100-80gb-sxm", 32 * MIB)):
        listed = plan_config(replace(bare.config, gpu=find_gpu(name)))
        assert listed.memory.allocated_bytes == bare.memory.allocated_bytes + 2 * one
        assert listed.memory.workspace_bytes == 0
    on_a100 = plan_config(replace(bare.config, gpu=find_gpu("a100-80gb-sxm")))
    assert on_a100.memory.needed_bytes == bare.memory.needed_bytes


def test_one_group_of_gptq_has_fewer_scales() -> None:
    def weights(group: int) -> int:
        found = plan("llama-2-7b", method="lora", quantization="gptq4", gptq_group_size=group)
        return found.memory.components["weights"]

    blocks = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    # an fp16 scale and a 4-bit zero point for each group of 128, against one for each column
    assert weights(128) - weights(-1) == pytest.approx(blocks / 128 * 2.5, rel=0.05)


def test_bigscience_copies_its_logits() -> None:
    def logits(engine: str) -> int:
        found = plan("gpt2", engine=engine, gpus=2, zero=1, micro_batch=8, seq_len=1024)
        instants = found.memory.ledger
        return instants.components("loss")["logits"]

    rows = -(-50257 // 128) * 128
    more = logits("megatron-deepspeed") - logits("megatron")
    assert more == pytest.approx(4 * 8 * 1024 * rows, rel=1e-3)
