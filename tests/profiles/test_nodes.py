"""The catalogue of machines, and the one that is assumed when none is named."""

import pytest

from vram_plan.profiles.gpus import find_gpu, load_gpus
from vram_plan.profiles.links import load_links
from vram_plan.profiles.names import UnknownNameError
from vram_plan.profiles.nodes import NodeSpec, default_node, find_node, load_nodes

GIB = 2**30

# name, GPUs, host memory in GiB, NVMe in GB, network in Gb/s: user guides of the DGX systems, and
# https://karpenter.sh/docs/reference/instance-types/ for AWS
REFERENCE = [
    ("dgx-a100-40gb", 8, 1024, 15_360, 8 * 200),
    ("dgx-a100-80gb", 8, 2048, 30_720, 8 * 200),
    ("dgx-h100", 8, 2048, 30_720, 8 * 400),
    ("aws-p4d.24xlarge", 8, 1152, 8000, 400),
    ("aws-p4de.24xlarge", 8, 1152, 8000, 400),
    ("aws-p5.48xlarge", 8, 2048, 30_400, 3200),
    ("aws-p3dn.24xlarge", 8, 768, 1800, 100),
    ("aws-g5.12xlarge", 4, 192, 3800, 40),
    ("aws-g6e.48xlarge", 8, 1536, 7600, 400),
    ("azure-nd96isr-h100-v5", 8, 1900, 30_065, 8 * 400),
]


@pytest.mark.parametrize(("name", "gpus", "host_gib", "nvme_gb", "gbit_s"), REFERENCE)
def test_figures_equal_the_makers(
    name: str, gpus: int, host_gib: int, nvme_gb: int, gbit_s: int
) -> None:
    node = find_node(name)
    assert node.gpus == gpus
    assert node.host_memory_bytes == host_gib * GIB
    assert node.nvme_bytes == pytest.approx(nvme_gb * 1e9, rel=1e-4)
    assert node.network_bytes_per_s == pytest.approx(gbit_s * 1e9 / 8)
    assert node.network_bytes_per_s_per_gpu == pytest.approx(gbit_s * 1e9 / 8 / gpus)


@pytest.mark.parametrize("node", load_nodes().values(), ids=lambda node: node.name)
def test_entry_is_plausible_and_has_its_source(node: NodeSpec) -> None:
    assert "https://" in node.source
    assert 16 * GIB <= node.host_memory_bytes <= 4096 * GIB
    assert node.gpu is None or node.link == load_gpus()[node.gpu].link
    assert node.network is None or node.network in load_links()
    if node.link is not None:
        assert node.link_bytes_per_s == load_links()[node.link].bytes_per_second


def test_names_in_any_case_and_near_ones() -> None:
    assert find_node("DGX-H100").name == "dgx-h100"
    with pytest.raises(
        UnknownNameError, match=r"unknown node 'aws-p4d'; did you mean .*aws-p4d\.24xlarge"
    ):
        find_node("aws-p4d")


@pytest.mark.parametrize("name", list(load_gpus()))
def test_every_gpu_has_a_default_machine(name: str) -> None:
    gpu = load_gpus()[name]
    for gpus in (1, 2, 4, 8):
        node = default_node(gpu, gpus)
        assert (node.gpus, node.gpu, node.link) == (gpus, name, gpu.link)
        assert node.note.startswith("assumed: no node was named")
        assert node.source
        # from a T4's share of g4dn.metal to the whole of p6-b300.48xlarge for one B300
        assert 48 <= node.host_memory_bytes / GIB / gpus <= 4096


def test_default_machine_is_the_reference_system() -> None:
    sxm = default_node(find_gpu("a100-80gb-sxm"), 8)
    assert (sxm.name, sxm.host_memory_bytes) == ("dgx-a100-80gb", 2048 * GIB)
    part = default_node(find_gpu("a100-80gb-sxm"), 2)
    assert part.host_memory_bytes == 2048 * GIB
    assert part.note == (
        "assumed: no node was named, so 2 GPUs of a dgx-a100-80gb and all of its host memory"
    )
    assert part.network_bytes_per_s_per_gpu == sxm.network_bytes_per_s_per_gpu


def test_default_workstation_grows_in_memory_alone() -> None:
    one, four = (default_node(find_gpu("rtx-4090"), gpus) for gpus in (1, 4))
    assert one.host_memory_bytes == 64 * GIB
    assert four.host_memory_bytes == 256 * GIB
    assert four.nvme_bytes == one.nvme_bytes
    assert four.network_bytes_per_s == one.network_bytes_per_s


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="--gpus-per-node must be at least 1, got 0"):
        default_node(find_gpu("rtx-4090"), 0)
