"""Measure this machine and put together what the plan needs of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vram_plan.bench.calibrate.clock import Clock
from vram_plan.bench.calibrate.collectives import measure_links
from vram_plan.bench.calibrate.fit import best_rate, fit_products, fit_steps
from vram_plan.bench.calibrate.micro import (
    Product,
    attention_rates,
    copy_bandwidth,
    host_link,
    products,
)
from vram_plan.bench.calibrate.reference import configured, reference_steps
from vram_plan.estimator.speed.optimizer_step import moved_bytes
from vram_plan.profiles.collective_rates import MeasuredLinks
from vram_plan.profiles.efficiency import Curves
from vram_plan.profiles.gpus import GpuSpec, find_gpu
from vram_plan.profiles.machine import THIS, Machine

__all__ = ["calibrate", "cores_of_a_rank"]

_UNKNOWN_LINK = "pcie4-x16"
Say = Callable[[str], None]


def calibrate(device: str, say: Say, ranks: int | None = None) -> Machine:
    """Measure kernels and reference steps on ``cpu`` or ``cuda``, and what GPUs exchange.

    Args:
        device: what to measure.
        say: hears of each part.
        ranks: between so many processes; None for a GPU each, and none on a CPU.

    Raises:
        ValueError: when the card is not in the catalogue.
    """
    with cores_of_a_rank(device, ranks or 1):
        return _measure(device, say, ranks)


@contextmanager
def cores_of_a_rank(device: str, ranks: int) -> Iterator[None]:
    """As many threads as one of several ranks on a CPU has: all of them share its cores.

    torchrun gives every rank one thread unless ``OMP_NUM_THREADS`` says otherwise (torch 2.13.0
    ``torch/distributed/run.py`` ``config_from_args``). A process alone takes all cores, and
    measured so each of two ranks on two cores would be planned twice too fast.
    """
    import torch

    before = torch.get_num_threads()
    if device == "cpu" and ranks > 1:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(device: str, say: Say, ranks: int | None) -> Machine:
    clock = Clock(device)
    dtypes = ("fp32", "bf16") if device == "cuda" else ("fp32",)
    say("matrix products")
    found = products(clock, dtypes)
    say("memory bandwidth")
    bandwidth = copy_bandwidth(clock)
    gpu = _card(bandwidth, clock) if device == "cuda" else _processor(found, bandwidth)
    say("attention")
    curves = _single_kernels(found, clock, gpu, bandwidth)
    say("reference steps")
    names = ("memory", "matmul", "launch_seconds")
    if device == "cpu":  # what a CPU has begun it has done: nothing is launched ahead
        names = ("memory", "matmul_wide", "kernel_seconds")
    curves = fit_steps(reference_steps(clock), gpu, curves, names)
    return Machine(gpu=gpu, curves=curves, links=_links(device, ranks, say))


def _links(device: str, ranks: int | None, say: Say) -> MeasuredLinks | None:
    """Collectives where there are several ranks; what was measured before is not lost with them."""
    count = _devices(device) if ranks is None else ranks
    if count < 2:
        return None
    say(f"collectives between {count} ranks")
    try:
        return measure_links(device, count)
    except ValueError as error:
        say(f"no collectives, the catalogue's links are used: {error}")
        return None


def _devices(device: str) -> int:
    if device == "cpu":
        return 1
    import torch

    return torch.cuda.device_count()


def _single_kernels(found: list[Product], clock: Clock, gpu: GpuSpec, bandwidth: float) -> Curves:
    wide = fit_products([one for one in found if one.dtype == "fp32"], gpu.peak_flops["fp32"])
    low = wide
    if clock.device == "cuda":
        low = fit_products([one for one in found if one.dtype == "bf16"], gpu.peak_flops["bf16"])
    peak = gpu.peak_flops["fp32" if clock.device == "cpu" else "bf16"]
    forward, backward = (min(rate / peak, 1.5) for rate in attention_rates(clock))
    share = bandwidth / gpu.memory_bandwidth_bytes_per_s
    on_cpu = clock.device == "cpu"
    return Curves(
        name=THIS,
        matmul=low.share,
        matmul_wide=wide.share,
        matmul_narrow=low.share,
        matmul_inner=low.inner,
        product_seconds=low.seconds,
        attention_forward=forward,
        attention_backward=backward,
        memory=share,
        dequantization=share / 2,
        optimizer=_optimizer_share(clock, gpu),
        kernel_seconds=5e-6 if on_cpu else 3e-6,
        launch_seconds=0.0 if on_cpu else 15e-6,
        contention=1.0 if on_cpu else 0.2,  # gloo adds up on the cores that compute
        source=f"measured on {platform.machine()} with {os.cpu_count()} logical processors",
    )


def _optimizer_share(clock: Clock, gpu: GpuSpec) -> float:
    """Share of the bandwidth that AdamW and clipping reach, by the bytes that the plan counts."""
    import torch

    weights = [torch.ones(1024, 1024, device=clock.device) for _ in range(8)]
    for weight in weights:
        weight.requires_grad_()
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(weights)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    config = replace(configured(_SMALLEST, {}, clock.device), weights_dtype="fp32")
    nbytes = moved_bytes(config) * sum(weight.numel() for weight in weights)
    rate = nbytes / clock.seconds(step)
    return min(rate / gpu.memory_bandwidth_bytes_per_s, 1.5)


_SMALLEST: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}


def _processor(found: list[Product], bandwidth: float) -> GpuSpec:
    """This computer's processor as something to plan for; its memory is the host's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return GpuSpec(
        name=THIS,
        vendor=platform.machine(),
        kind="workstation",
        architecture="CPU",
        compute_capability="",
        memory_bytes=memory,
        usable_bytes=memory,
        usable_source="memory of this computer",
        peak_flops={"fp32": best_rate(found, "fp32")},
        memory_bandwidth_bytes_per_s=bandwidth,
        link=_UNKNOWN_LINK,
        link_bytes_per_s=bandwidth,
        host_link=_UNKNOWN_LINK,
        host_link_bytes_per_s=bandwidth,
        tdp_watts=None,
        source="measured",
    )


def _card(bandwidth: float, clock: Clock) -> GpuSpec:
    """The catalogue's card of this name, with the host link as measured.

    Its machine is any workstation unless ``--node`` names one.
    """
    import torch

    known = find_gpu(torch.cuda.get_device_name())
    rate = host_link(clock) or known.host_link_bytes_per_s
    return replace(
        known, name=THIS, kind="workstation", host_link_bytes_per_s=rate, source="measured"
    )
