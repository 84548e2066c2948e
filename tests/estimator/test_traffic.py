"""What an optimizer step sends: the laws that hold between ways of spreading a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vram_plan.estimator.config import TrainConfig, ZeroSizes
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.speed import bubble
from vram_plan.estimator.speed.offload import cpu_update_seconds
from vram_plan.estimator.speed.techniques.ddp import BUCKET_BYTES, buckets
from vram_plan.estimator.speed.traffic import NotModelled, Transfer, transfers
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.models import resolve_model

NOTHING_KEPT = ZeroSizes(
    overlap_comm=True,
    stage3_param_persistence_threshold=0,
    stage3_max_reuse_distance=0,
    stage3_prefetch_bucket_size=0,
)


def config(model: str = "llama-2-7b", **options: Any) -> TrainConfig:
    return resolve(resolve_model(model), {"gpus": 8, "gpu": find_gpu("a100-80gb-sxm"), **options})


def sent(found: tuple[Transfer, ...], word: str = "") -> float:
    return sum(one.bytes for one in found if word in one.part)


def seconds(found: tuple[Transfer, ...], *, exposed: bool = False) -> float:
    return sum(one.seconds for one in found if not (exposed and one.overlaps))


@pytest.mark.parametrize("model", ["llama-2-7b", "mistral-7b", "7b"])
@pytest.mark.parametrize("gpus", [2, 8, 64])
def test_zero_3_moves_one_and_a_half_times_the_bytes_of_ddp(model: str, gpus: int) -> None:
    """3 Ψ against 2 Ψ (arXiv:1910.02054 section 7.2), with nothing kept gathered."""
    ddp = sent(transfers(config(model, gpus=gpus)))
    run = replace(config(model, gpus=gpus, zero=3), zero_sizes=NOTHING_KEPT)
    assert sent(transfers(run)) == pytest.approx(1.5 * ddp, rel=1e-7)


def test_a_tied_embedding_is_gathered_for_the_head_too() -> None:
    ddp = sent(transfers(config("gpt2")))
    run = replace(config("gpt2", zero=3), zero_sizes=NOTHING_KEPT)
    twice = 2 * 2 * 50257 * 768 * 7 / 8
    assert sent(transfers(run)) == pytest.approx(1.5 * ddp + twice, rel=1e-7)


def test_weights_are_gathered_once_more_for_whatever_is_recomputed() -> None:
    """A recomputed module's hooks fetch its weights: 4 Ψ in all, a part of it or the whole."""
    runs = [
        replace(config(zero=3, checkpointing=kind), zero_sizes=NOTHING_KEPT)
        for kind in ("none", "selective", "full")
    ]
    none, selective, full = (sent(transfers(run), "all-gather") for run in runs)
    assert selective == full > 1.4 * none


def test_what_deepspeed_keeps_gathered_saves_some_of_it() -> None:
    run = config(zero=3)
    kept = sent(transfers(run))
    assert 0.9 < kept / sent(transfers(replace(run, zero_sizes=NOTHING_KEPT))) < 1


def test_fsdp_gathers_its_blocks_twice_and_the_root_once() -> None:
    full, once = (sent(transfers(config(fsdp=how))) for how in ("full-shard", "grad-op"))
    ddp = sent(transfers(config()))
    assert once == pytest.approx(ddp, rel=1e-6)
    assert ddp < full < 1.5 * ddp


def test_hybrid_shards_leave_the_machine_with_an_eighth() -> None:
    found = transfers(config(gpus=32, fsdp="hybrid-shard"))
    over = [one for one in found if "machines" in one.name]
    ddp = sent(transfers(config(gpus=32)))
    assert sent(tuple(over)) == pytest.approx(ddp / 8 * (3 / 4) / (31 / 32), rel=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_traffic_of_zero_grows_with_the_stage(accumulation: int) -> None:
    """Same ``overlap_comm``: 0 ≤ 1 ≤ 2 in bytes and seconds; 3 reduces half as much as 2."""
    stages = [
        transfers(config(zero=stage, grad_accum=accumulation, checkpointing="full"))
        for stage in (0, 1, 2, 3)
    ]
    assert sent(stages[0]) < sent(stages[1]) <= sent(stages[2])
    assert seconds(stages[0]) < seconds(stages[1]) <= seconds(stages[2])
    assert sent(stages[3], "reduce-scatter") == pytest.approx(sent(stages[2], "all-reduce") / 2)
    assert seconds(stages[3]) >= 0.99 * seconds(stages[2])


def test_offload_adds_to_every_stage() -> None:
    """2 < 2 with the optimizer offloaded < 3 with optimizer and weights offloaded."""
    two = transfers(config(zero=2))
    offloaded = transfers(config(zero=2, offload="optimizer"))
    both = transfers(config(zero=3, offload="optimizer+params"))
    assert seconds(two) < seconds(offloaded) < seconds(both)
    assert sent(both, "offload") > sent(offloaded, "offload") > 0


def test_only_stage_2_and_3_reduce_after_every_micro_batch() -> None:
    """DeepSpeed 0.19.8 engine.py allreduce_gradients."""
    for stage, times in ((0, 1), (1, 1), (2, 4), (3, 4)):
        part = "reduce-scatter" if stage == 3 else "all-reduce"
        one = sent(transfers(config(zero=stage)), part)
        assert sent(transfers(config(zero=stage, grad_accum=4)), part) == times * one


def test_ddp_hides_all_but_its_last_bucket_behind_the_last_backward_pass() -> None:
    hidden, last, copies = transfers(config(grad_accum=4))
    assert (hidden.overlaps, hidden.window) == ("backward", 0.25)
    assert last.overlaps is None
    assert last.count == 1
    assert (copies.overlaps, copies.bytes) == (None, 0)


@given(st.lists(st.integers(1, 200 * 2**20), min_size=1, max_size=60))
def test_buckets_hold_every_gradient(sizes: list[int]) -> None:
    found = list(buckets(sizes))
    assert sum(found) == sum(sizes)
    assert all(size >= BUCKET_BYTES for size in found[1:-1])


def test_sequence_parallelism_sends_no_more_forward() -> None:
    """A reduce-scatter and an all-gather are an all-reduce (arXiv:2205.05198 section 4.2.2)."""
    plain, split = (
        transfers(config("llama-2-70b", tp=8, sequence_parallel=how)) for how in (False, True)
    )
    forward = [sum(one.bytes for one in x if one.name == "hidden states") for x in (plain, split)]
    assert forward[0] == pytest.approx(forward[1])


def test_tensor_parallel_collectives_per_block() -> None:
    """Two all-reduces forward and two backward (arXiv:1909.08053 section 3), ends aside."""
    found = transfers(config("llama-2-70b", tp=8))
    counts = {one.name: one.count for one in found}
    assert counts["hidden states"] == 2 * 80 + 2
    assert counts["gradients of hidden states"] == 2 * 80
    again = transfers(config("llama-2-70b", tp=8, checkpointing="full"))
    assert next(one.count for one in again if one.name == "hidden states") == 4 * 80 + 2


def test_one_bit_adam_sends_a_sixteenth() -> None:
    """Signs instead of 16 bits, both ways (arXiv:2102.02888 section 4)."""
    onebit = sent(transfers(config(zero=0, optimizer="one-bit-adam")))
    assert onebit == pytest.approx(sent(transfers(config(zero=0))) / 16, rel=1e-3)


def test_experts_and_context_ranks() -> None:
    found = transfers(config("mixtral-8x7b", gpus=16, ep=8))
    tokens = next(one for one in found if one.part.endswith("all-to-all"))
    assert tokens.count == 4 * 32
    assert tokens.bytes == 4 * 32 * 2 * 2048 * 4096 * 2 * 7 / 8
    ring = [one for one in transfers(config(cp=4)) if "ring" in one.name]
    assert [one.overlaps for one in ring] == ["forward", "backward"]
    assert ring[0].count == 3 * 32
    again = transfers(config(cp=4, engine="megatron", checkpointing="selective"))
    assert next(one.count for one in again if "ring" in one.name) == 2 * 3 * 32


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
    st.integers(1, 8),
    st.booleans(),
)
def test_no_transfer_is_negative_and_more_micro_batches_never_send_less(
    tp: int, pp: int, cp: int, waves: int, sequence: bool
) -> None:
    options = {"tp": tp, "pp": pp, "cp": cp, "sequence_parallel": sequence and tp > 1}
    few, more = (
        transfers(config("gpt2-xl" if tp == 1 else "llama-2-7b", gpus=32, grad_accum=n, **options))
        for n in (waves, waves + 1)
    )
    assert sent(few) <= sent(more)
    assert seconds(few) <= seconds(more)
    for one in few:
        assert one.seconds > 0 or one.bytes == 0


@pytest.mark.parametrize(
    ("schedule", "pieces", "expected"),
    [("1f1b", 1, 3 / 8), ("gpipe", 1, 3 / 8), ("interleaved", 2, 3 / 16), ("naive", 1, 3)],
)
def test_bubble(schedule: str, pieces: int, expected: float) -> None:
    """Narayanan et al., arXiv:2104.04473 section 2.2."""
    options: dict[str, Any] = {"pp_schedule": schedule, "virtual_pipeline": pieces}
    run = config(gpus=4, pp=4, grad_accum=8, engine="megatron", **options)
    assert bubble.ratio(run) == expected


def test_updates_on_the_processor_as_published() -> None:
    """An 11.6·10⁹-parameter model took 8.2 s (deepspeedai/DeepSpeed pull request 735)."""
    run = config(zero=2, offload="optimizer")
    assert cpu_update_seconds(run, 11.6e9 / 8) == pytest.approx(8.2, rel=0.3)


def test_nothing_travels_on_one_gpu_or_for_inference() -> None:
    assert transfers(config(gpus=1)) == ()
    assert transfers(config(task="inference", gpus=1)) == ()


def test_what_the_catalogue_does_not_know_is_said() -> None:
    with pytest.raises(NotModelled, match="disks of"):
        transfers(config(zero=3, offload="optimizer", offload_device="nvme"))
    run = config(zero=3, offload="optimizer", offload_device="nvme")
    assert run.node is not None
    disks = replace(run.node, nvme_read_bytes_per_s=25e9, nvme_write_bytes_per_s=12.5e9)
    swapped = next(x for x in transfers(replace(run, node=disks)) if "disks" in x.name)
    assert swapped.seconds == pytest.approx(12 * 6_738_415_616 * (1 / 25e9 + 1 / 12.5e9), rel=1e-6)
    without = resolve(resolve_model("gpt2"), {"gpus": 8})
    with pytest.raises(NotModelled, match="--gpu"):
        transfers(without)
