"""What machines cost, and which are out for it before anything is computed."""

from __future__ import annotations

from vram_plan.estimator.search import tally
from vram_plan.estimator.search.wish import Wish
from vram_plan.profiles.gpus import GpuSpec


def usd_per_hour(wish: Wish, gpus: int, gpu: GpuSpec | None) -> float | None:
    """Rent of all GPUs, the user's or on demand; None where no price is known."""
    own = wish.workload.usd_per_gpu_hour
    if own is not None:
        return gpus * own
    if gpu is None or gpu.rental_usd_per_hour is None:
        return None
    return gpus * gpu.rental_usd_per_hour.usd


def priced_out(wish: Wish, gpus: int, gpu: GpuSpec | None) -> tally.Out | None:
    """Why this machine is out, whatever runs on it."""
    rent = usd_per_hour(wish, gpus, gpu)
    if wish.max_usd_per_hour is not None and rent is not None and rent > wish.max_usd_per_hour:
        name = "GPUs" if gpu is None else gpu.name
        return tally.Out(tally.TOO_DEAR, f"{gpus} × {name} for ${rent:,.2f} an hour")
    if rent is None and (wish.max_usd_per_hour is not None or wish.objective == "cost"):
        return tally.Out(tally.NO_PRICE, "" if gpu is None else gpu.name)
    return None
