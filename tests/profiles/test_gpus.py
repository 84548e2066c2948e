"""The catalogue of GPUs against data sheets, and the names people type."""

import datetime
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vram_plan.profiles.gpus import GpuSpec, Price, find_gpu, load_gpus
from vram_plan.profiles.links import find_link, load_links
from vram_plan.profiles.names import UnknownNameError

GIB = 2**30

# name, GiB, dense FP16 TFLOP/s with FP32 accumulation, memory GB/s, W: from the sheet named above.
DATA_SHEETS = [
    # NVIDIA A100 data sheet 1758950 r4: 312 | 624 with sparsity
    ("a100-40gb-pcie", 40, 312, 1555, 250),
    ("a100-40gb-sxm", 40, 312, 1555, 400),
    ("a100-80gb-pcie", 80, 312, 1935, 300),
    ("a100-80gb-sxm", 80, 312, 2039, 400),
    # nvidia.com/en-us/data-center/h100: 1,979, 1,513 and 1,671 with sparsity
    ("h100-80gb-sxm", 80, 989.5, 3350, 700),
    ("h100-80gb-pcie", 80, 756.5, 2000, 350),
    ("h100-94gb-nvl", 94, 835.5, 3900, 400),
    # nvidia.com/en-us/data-center/h200: 1,979 with sparsity
    ("h200-141gb", 141, 989.5, 4800, 700),
    # V100 data sheet 1165301 r5
    ("v100-32gb-sxm", 32, 125, 900, 300),
    ("v100-16gb", 16, 112, 900, 250),
    # T4 data sheet 951643, A10 data sheet, A10G for AWS data sheet (70 | 140 with sparsity)
    ("t4-16gb", 16, 65, 300, 70),
    ("a10-24gb", 24, 125, 600, 150),
    ("a10g-24gb", 24, 70, 600, 300),
    # nvidia.com/en-us/data-center/l40s: 362.05 | 733 with sparsity
    ("l40s-48gb", 48, 362.05, 864, 350),
    # Turing whitepaper, appendix: reference 2080 Ti 53.8, Titan RTX 130.5
    ("rtx-2080ti-11gb", 11, 53.8, 616, 250),
    ("titan-rtx-24gb", 24, 130.5, 672, 280),
    # GA102 whitepaper, appendix A: 3090 71, A6000 154.8
    ("rtx-3090-24gb", 24, 71, 936, 350),
    ("rtx-a6000-48gb", 48, 154.8, 768, 300),
    # Ada whitepaper 2.02, appendix A: 4090 165.2 (330.3 with FP16 accumulation), RTX 6000 Ada 364.2
    ("rtx-4090-24gb", 24, 165.2, 1008, 450),
    ("rtx-4080-16gb", 16, 97.5, 716.8, 320),
    ("rtx-6000-ada-48gb", 48, 364.2, 960, 300),
    # RTX Blackwell whitepaper, appendix: 5090 209.5
    ("rtx-5090-32gb", 32, 209.5, 1792, 575),
    # amd.com MI300X: 1,307.4
    ("mi300x-192gb", 192, 1307.4, 5300, 750),
]

# Every `gpu` of the measured rows.
MEASURED = [
    *("a100-80gb", "a100-80gb-sxm", "a100-40gb", "a100-40gb-sxm", "a800-80gb", "a10g-24gb"),
    *("h100", "h100-80gb", "h100-80gb-sxm", "h100-96gb-sxm", "h800-80gb", "h20", "h200-141gb"),
    *("b200", "gb200", "gb300", "l40s-48gb", "t4-16gb", "v100-32gb", "v100-16gb", "v100-16gb-sxm"),
    *("rtx-4090-24gb", "rtx-3090-24gb", "rtx-4070ti-super-16gb", "titan-rtx-24gb"),
]


@pytest.mark.parametrize(("name", "gib", "tflops", "gb_s", "watts"), DATA_SHEETS)
def test_figures_equal_the_data_sheet(
    name: str, gib: int, tflops: float, gb_s: float, watts: int
) -> None:
    gpu = load_gpus()[name]
    assert gpu.memory_bytes == gib * GIB
    assert gpu.peak_flops["fp16"] / 1e12 == pytest.approx(tflops, rel=3e-3)
    assert gpu.memory_bandwidth_bytes_per_s / 1e9 == pytest.approx(gb_s, rel=1e-3)
    assert gpu.tdp_watts == watts


def test_eight_bit_peaks_are_dense() -> None:
    # H100 SXM: 3,958 with sparsity; RTX 4090: 330.3 with FP32 accumulation;
    # DGX B200, eight GPUs: 72 PFLOPS in FP8 and 144 in FP4, both with sparsity
    assert load_gpus()["h100-80gb-sxm"].peak_flops["fp8"] == pytest.approx(1979e12)
    assert load_gpus()["rtx-4090-24gb"].peak_flops["fp8"] == pytest.approx(330.3e12)
    assert load_gpus()["b200"].peak_flops["fp8"] == pytest.approx(72e15 / 2 / 8)
    assert load_gpus()["b200"].peak_flops["fp4"] == pytest.approx(144e15 / 2 / 8)


@pytest.mark.parametrize(
    ("name", "gib"),
    # total capacity in PyTorch's out-of-memory messages; the threads are in hardware_sources.csv
    [
        ("a100-80gb-sxm", 79.14),
        ("a100-40gb", 39.39),
        ("h100-80gb-sxm", 79.11),
        ("h200-141gb", 139.80),
        ("b200", 178.35),
        ("gb200", 184.31),
        ("gb300", 276.50),
        ("l40s-48gb", 44.42),
        ("t4-16gb", 14.56),
        ("rtx-4090-24gb", 23.52),
        ("rtx-5090-32gb", 31.36),
        ("h20", 95.00),
    ],
)
def test_usable_memory_is_what_cuda_reports(name: str, gib: float) -> None:
    assert load_gpus()[name].usable_bytes / GIB == pytest.approx(gib, abs=0.03)


def test_catalogue_covers_the_generations() -> None:
    gpus = load_gpus()
    assert len(gpus) >= 45
    assert {gpu.vendor for gpu in gpus.values()} == {"NVIDIA", "AMD"}
    assert {gpu.kind for gpu in gpus.values()} == {"consumer", "workstation", "datacentre"}
    for generation in ("20", "30", "40", "50"):
        assert sum(name.startswith(f"rtx-{generation}") for name in gpus) >= 5


@pytest.mark.parametrize("name", MEASURED)
def test_every_gpu_of_the_measured_rows_is_known(name: str) -> None:
    assert find_gpu(name).name == name


@pytest.mark.parametrize("gpu", load_gpus().values(), ids=lambda gpu: gpu.name)
def test_entry_is_plausible_and_has_its_sources(gpu: GpuSpec) -> None:
    assert "https://" in gpu.source
    assert "https://" in gpu.usable_source
    assert 0.9 < gpu.usable_bytes / gpu.memory_bytes < 1 or "two devices" in gpu.note
    assert 0.2e12 <= gpu.memory_bandwidth_bytes_per_s <= 8.1e12
    assert gpu.link in load_links()
    assert gpu.host_link in load_links()
    assert gpu.supports_bf16 is (gpu.architecture not in {"Volta", "Turing"})
    assert gpu.peak_flops.get("bf16", gpu.peak_flops["fp16"]) == gpu.peak_flops["fp16"]
    # half the width, twice the rate; GeForce doubles nothing between TF32 and FP32
    for narrow, wide in (("fp8", "fp16"), ("int8", "fp16"), ("fp16", "fp32"), ("tf32", "fp32")):
        assert gpu.peak_flops.get(narrow, 1e99) >= gpu.peak_flops.get(wide, 0)


@pytest.mark.parametrize("gpu", load_gpus().values(), ids=lambda gpu: gpu.name)
def test_prices_have_a_source_and_a_date(gpu: GpuSpec) -> None:
    for price in (gpu.rental_usd_per_hour, gpu.purchase_usd):
        if price is not None:
            assert price.source.startswith("https://")
            assert datetime.date(2018, 1, 1) < datetime.date.fromisoformat(price.date)
    if gpu.rental_usd_per_hour is not None:
        assert 0.05 <= gpu.rental_usd_per_hour.usd <= 20
    if gpu.purchase_usd is not None:
        assert 250 <= gpu.purchase_usd.usd <= 50_000


def test_launch_and_rental_prices() -> None:
    gpus = load_gpus()
    launch = gpus["rtx-4090-24gb"].purchase_usd
    assert launch is not None
    assert (launch.usd, launch.date) == (1599, "2022-09-20")
    rental = gpus["h100-80gb-sxm"].rental_usd_per_hour
    assert rental is not None
    assert (rental.usd, rental.date) == (3.99, "2026-09-20")
    assert sum(gpu.rental_usd_per_hour is not None for gpu in gpus.values()) >= 30
    assert sum(gpu.purchase_usd is not None for gpu in gpus.values()) >= 20


@pytest.mark.parametrize("name", ["a100-40gb", "a100-80gb", "h100-80gb", "v100-16gb", "v100-32gb"])
def test_unknown_form_factor_takes_the_lower_figures_and_says_so(name: str) -> None:
    gpus = load_gpus()
    unknown = gpus[name]
    variants = [gpu for other, gpu in gpus.items() if other.startswith(f"{name}-")]
    assert "form factor unknown" in unknown.note
    assert variants
    for gpu in variants:
        assert unknown.peak_flops["fp16"] <= gpu.peak_flops["fp16"]
        assert unknown.memory_bandwidth_bytes_per_s <= gpu.memory_bandwidth_bytes_per_s
        assert unknown.link_bytes_per_s <= gpu.link_bytes_per_s
        assert unknown.usable_bytes <= gpu.usable_bytes


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("rtx-4090", "rtx-4090-24gb"),
        ("RTX 4090", "rtx-4090-24gb"),
        ("rtx4090", "rtx-4090-24gb"),
        ("4090", "rtx-4090-24gb"),
        ("rtx-4080", "rtx-4080-16gb"),
        ("rtx-4070-ti-super", "rtx-4070ti-super-16gb"),
        ("a6000", "rtx-a6000-48gb"),
        ("l40s", "l40s-48gb"),
        ("l4", "l4-24gb"),
        ("h200", "h200-141gb"),
        ("h100-pcie", "h100-80gb-pcie"),
        ("H100", "h100"),
        ("mi300x", "mi300x-192gb"),
        # as torch.cuda.get_device_name() says it
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb-sxm"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-sxm"),
        ("Tesla V100-SXM2-32GB", "v100-32gb-sxm"),
        ("Tesla T4", "t4-16gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada-48gb"),
        ("AMD Instinct MI300X", "mi300x-192gb"),
    ],
)
def test_short_forms_that_one_gpu_has(typed: str, name: str) -> None:
    assert find_gpu(typed).name == name


@given(st.sampled_from(sorted(load_gpus())), st.booleans())
def test_a_full_name_is_its_own_entry(name: str, upper: bool) -> None:
    assert find_gpu(name.upper() if upper else name).name == name


@pytest.mark.parametrize(
    ("typed", "listed"),
    [
        ("rtx-3060", ["rtx-3060-8gb", "rtx-3060-12gb"]),
        ("rtx-4060ti", ["rtx-4060ti-8gb", "rtx-4060ti-16gb"]),
        ("a100", ["a100-40gb", "a100-80gb-sxm"]),
        ("v100-sxm", ["v100-16gb-sxm", "v100-32gb-sxm"]),
    ],
)
def test_ambiguous_forms_list_what_they_can_be(typed: str, listed: list[str]) -> None:
    with pytest.raises(UnknownNameError, match="give the full name") as error:
        find_gpu(typed)
    assert all(name in str(error.value) for name in listed)


@pytest.mark.parametrize(
    ("typed", "near"),
    [("rtx-4099", "rtx-4090-24gb"), ("a100-80gb-smx", "a100-80gb-sxm"), ("mi300", "mi300x-192gb")],
)
def test_unknown_names_suggest_near_ones(typed: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown GPU '{typed}'; did you mean .*{near}"):
        find_gpu(typed)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown GPU ''"):
        find_gpu("")
    with pytest.raises(ValueError, match="usd must be positive"):
        Price(usd=0, source="https://example.com", date="2026-01-01")
    with pytest.raises(ValueError, match="source and a date"):
        Price(usd=1, source="https://example.com", date="")


def test_specs_are_values() -> None:
    gpu = find_gpu("h100-80gb-sxm")
    assert len({gpu, find_gpu("h100-80gb-sxm")}) == 1
    with pytest.raises(AttributeError):
        gpu.memory_bytes = 1  # type: ignore[misc]  # frozen: that is what is tested


def test_links() -> None:
    # per direction: NVIDIA prints both ways (900 GB/s for the H100); PCIe 4.0 is 16 GT/s, 128b/130b
    assert find_link("NVLink4").bytes_per_second == 450e9
    assert find_link("pcie4-x16").bytes_per_second == pytest.approx(
        16e9 / 8 * 16 * 128 / 130, rel=1e-4
    )
    assert find_link("ib-ndr").bytes_per_second == 400e9 / 8
    assert find_link("ib-hdr").latency_seconds == pytest.approx(0.6e-6)
    assert all("https://" in link.source for link in load_links().values())
    gpu = find_gpu("rtx-4060ti-16gb")
    assert (gpu.pcie_generation, gpu.pcie_lanes) == (4, 8)
    assert find_gpu("gb200").pcie_generation is None
    with pytest.raises(UnknownNameError, match="did you mean nvlink"):
        find_link("nvlink9")


def test_loading_needs_no_heavy_module() -> None:
    code = (
        "import sys; from vram_plan.profiles.gpus import find_gpu; find_gpu('rtx-4090');"
        "heavy = ('difflib', 'tomllib', 'importlib.metadata', 'json', 'torch');"
        "print([module for module in heavy if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
