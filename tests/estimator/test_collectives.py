"""Seconds of collectives: laws, and nccl-tests tables that others published."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.speed.collectives import KINDS, algorithm, seconds, sent_bytes
from vram_plan.estimator.speed.links import Group, group_of, host_rate, inside
from vram_plan.estimator.speed.transfer import NotModelled
from vram_plan.profiles.collective_rates import CollectiveRate, MeasuredLinks
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.models import resolve_model
from vram_plan.profiles.nodes import find_node

KIB, MIB, GIB = 2**10, 2**20, 2**30
GB_S = 1e9


def config(gpu: str, gpus: int, node: str = "", **options: object) -> TrainConfig:
    found: dict[str, object] = {"gpu": find_gpu(gpu), "gpus": gpus, **options}
    if node:
        found["node"] = find_node(node)
    return resolve(resolve_model("llama-2-7b"), found)


def bus_rate(kind: str, nbytes: int, group: Group) -> float:
    """As nccl-tests prints it (NVIDIA/nccl-tests doc/PERFORMANCE.md), GB/s."""
    return sent_bytes(kind, nbytes, group.ranks) / seconds(kind, nbytes, group) / GB_S


# (GPU, machine, GPUs, collective, bytes, GB/s of the bus, tolerance, where it was published)
STAS = "stas00/ml-engineering @ 744d01e1 network/README.md"
PUBLISHED = [
    ("a100-40gb-sxm", "dgx-a100-40gb", 8, "all-reduce", 16 * GIB, 234.89, 0.02, STAS),
    ("a100-40gb-sxm", "dgx-a100-40gb", 8, "all-reduce", 1 * GIB, 229.04, 0.04, STAS),
    ("a100-40gb-sxm", "dgx-a100-40gb", 8, "all-reduce", 512 * MIB, 222.72, 0.06, STAS),
    ("a100-80gb-sxm", "dgx-a100-80gb", 8, "all-reduce", 4 * GIB, 232.54, 0.03, "NVIDIA/nccl #1048"),
    ("h100-80gb-sxm", "dgx-h100", 8, "all-reduce", 8 * GIB, 480, 0.03, "NVIDIA/nccl-tests #212"),
    ("h100-80gb-sxm", "dgx-h100", 8, "all-reduce", 8 * GIB, 476, 0.03, "NVIDIA/nccl-tests #290"),
    ("h100-80gb-sxm", "dgx-h100", 8, "all-gather", 8 * GIB, 370, 0.03, "NVIDIA/nccl-tests #212"),
    ("h200-141gb", "dgx-h200", 8, "all-reduce", 16 * GIB, 482.26, 0.03, STAS),
    ("h200-141gb", "dgx-h200", 8, "all-reduce", 1 * GIB, 463.58, 0.04, STAS),
    ("h200-141gb", "dgx-h200", 8, "all-reduce", 256 * MIB, 436.15, 0.08, STAS),
    ("h200-141gb", "dgx-h200", 4, "all-reduce", 8 * GIB, 363.3, 0.03, STAS),
    ("h200-141gb", "dgx-h200", 8, "all-gather", 16 * GIB, 361.4, 0.03, STAS),
    ("h200-141gb", "dgx-h200", 8, "reduce-scatter", 16 * GIB, 362.9, 0.03, STAS),
    ("h200-141gb", "aws-p5en.48xlarge", 32, "all-reduce", 4 * GIB, 364.65, 0.03, STAS),
    ("b200", "aws-p6-b200.48xlarge", 8, "all-reduce", 16 * GIB, 845.67, 0.06, STAS),
    ("b200", "aws-p6-b200.48xlarge", 4, "all-reduce", 8 * GIB, 673.2, 0.08, STAS),
    ("b200", "aws-p6-b200.48xlarge", 32, "all-reduce", 16 * GIB, 381.8, 0.02, STAS),
    ("b200", "aws-p6-b200.48xlarge", 32, "all-reduce", 1 * GIB, 361.99, 0.07, STAS),
    ("mi300x-192gb", "azure-nd96isr-mi300x-v5", 8, "all-reduce", 4 * GIB, 312.912, 0.02, STAS),
    ("mi300x-192gb", "azure-nd96isr-mi300x-v5", 2, "all-reduce", 4 * GIB, 47.671, 0.08, STAS),
    # middle sizes, of a sweep that the model has not seen
    ("a100-40gb-sxm", "dgx-a100-40gb", 8, "all-reduce", 256 * MIB, 194.07, 0.15, STAS),
    ("a100-40gb-sxm", "dgx-a100-40gb", 8, "all-reduce", 64 * MIB, 171.54, 0.15, STAS),
    ("a100-40gb-sxm", "dgx-a100-40gb", 8, "all-reduce", 16 * MIB, 106.16, 0.2, STAS),
    ("a100-40gb-sxm", "dgx-a100-40gb", 8, "all-reduce", 4 * MIB, 72.33, 0.2, STAS),
    ("a100-40gb-sxm", "dgx-a100-40gb", 8, "all-reduce", 32 * KIB, 1.31, 0.2, STAS),
]


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"{case[0]}x{case[2]}-{case[3]}")
def test_published_bus_rates(
    case: tuple[str, str, int, str, int, float, float, str],
) -> None:
    gpu, node, gpus, kind, nbytes, measured, tolerance, _ = case
    group = group_of(config(gpu, gpus, node, gpus_per_node=min(gpus, 8)), gpus)
    assert bus_rate(kind, nbytes, group) == pytest.approx(measured, rel=tolerance)


@pytest.mark.parametrize(("nbytes", "chosen"), [(MIB, "ring LL"), (16 * MIB, "NVLink SHARP")])
def test_h200_switches_to_sharp_between_one_and_a_few_mebibytes(nbytes: int, chosen: str) -> None:
    """NCCL 2.27.7 runs ring under LL up to 1 MiB and NVLS from 2 MiB (the same page)."""
    group = group_of(config("h200-141gb", 8, "dgx-h200"), 8)
    assert algorithm("all-reduce", nbytes, group).startswith(chosen)


GROUPS = st.builds(
    lambda per_node, nodes, medium, rate, network: Group(
        ranks=per_node * nodes,
        per_node=per_node,
        medium=medium,
        architecture="Hopper",
        local_bytes_per_s=rate * GB_S,
        network_bytes_per_s=network * GB_S,
    ),
    st.integers(1, 8),
    st.integers(1, 16),
    st.sampled_from(["nvlink", "pcie", "xgmi"]),
    st.floats(5, 900),
    st.floats(1, 400),
)


@given(st.sampled_from(KINDS), st.integers(1, 2**34), GROUPS)
@settings(max_examples=200, deadline=None)
def test_never_faster_than_the_wire_and_more_takes_longer(
    kind: str, nbytes: int, group: Group
) -> None:
    took = seconds(kind, nbytes, group)
    if group.ranks == 1:
        assert took == 0 == sent_bytes(kind, nbytes, 1)
        return
    assert seconds(kind, 2 * nbytes, group) > took > 0
    fastest = max(group.local_bytes_per_s, group.network_bytes_per_s) * 1.3  # SHARP adds in flight
    assert took >= sent_bytes(kind, nbytes, group.ranks) / group.ranks / fastest


@given(st.integers(1, 2**32), st.integers(2, 512))
def test_an_all_reduce_sends_what_its_two_halves_send(nbytes: int, ranks: int) -> None:
    halves = [sent_bytes(kind, nbytes, ranks) for kind in ("all-gather", "reduce-scatter")]
    assert sent_bytes("all-reduce", nbytes, ranks) == sum(halves)
    assert sum(halves) == pytest.approx(2 * (ranks - 1) / ranks * nbytes)


def test_groups_of_one_machine_share_its_network() -> None:
    """Eight data-parallel groups of tensor ranks have an eighth of the network each."""
    run = config("a100-80gb-sxm", 32, engine="megatron", tp=8)
    data, whole = group_of(run, 4, stride=8), group_of(run, 32)
    assert (data.per_node, data.nodes) == (1, 4)
    assert data.network_bytes_per_s == pytest.approx(whole.network_bytes_per_s / 8)
    assert group_of(run, 8).nodes == 1


def test_a_network_that_nobody_knows_is_not_guessed() -> None:
    with pytest.raises(NotModelled, match="lambda-8x-h100"):
        group_of(config("h100-80gb-sxm", 16, "lambda-8x-h100", gpus_per_node=8), 16)


def test_machines_of_four_superchips_reach_each_other() -> None:
    """A cloud's single GH200 has no published network; a machine that has one is named."""
    with pytest.raises(NotModelled, match="choose --node, for example isambard-ai"):
        group_of(config("gh200-96gb", 16), 16)
    run = config("gh200-96gb", 16, "isambard-ai")
    assert run.gpus_per_node == 4  # the node's
    assert group_of(run, 16).network_bytes_per_s == pytest.approx(96 * GB_S)


def test_host_link_as_measured() -> None:
    """nvbandwidth on eight H200: 55.43 GB/s from the host (the same page)."""
    assert host_rate(config("h200-141gb", 1)) == pytest.approx(55.43 * GB_S)


def test_unknown_collectives_are_refused() -> None:
    group = group_of(config("a100-80gb-sxm", 8), 8)
    with pytest.raises(ValueError, match="unknown collective 'gossip'"):
        seconds("gossip", 1, group)


def test_a_machine_that_was_measured_needs_no_model() -> None:
    """α + sent bytes / β inside it; what leaves it, and what was not measured, is modelled."""
    own = CollectiveRate(kind="all-reduce", ranks=8, latency_seconds=2e-5, bytes_per_s=100 * GB_S)
    group = Group(
        ranks=8,
        per_node=8,
        medium="nvlink",
        architecture="Hopper",
        local_bytes_per_s=100 * GB_S,
        measured=MeasuredLinks(rates=(own,)),
    )
    assert algorithm("all-reduce", MIB, group) == "as measured"
    assert seconds("all-reduce", MIB, group) == pytest.approx(2e-5 + 2 * 7 / 8 * MIB / (100 * GB_S))
    assert algorithm("all-gather", MIB, group).startswith("ring")
    far = replace(group, ranks=16, network_bytes_per_s=50 * GB_S)
    assert algorithm("all-reduce", MIB, far) != "as measured"
    assert inside(far).measured == group.measured
