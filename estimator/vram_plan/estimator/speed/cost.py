"""What a run costs: dollars and kilowatt-hours from the time of a step, renting or buying.

Rental prices are the catalogue's (``profiles/data/prices.csv``, each with its page and day) unless
``--usd-per-gpu-hour`` says another. Energy is board power at full load times the hours of all GPUs:
an upper bound for the GPUs, without host, network and cooling, which ``--pue`` multiplies on. An
owned GPU pays for itself after

    purchase price / (rent an hour − kilowatts · PUE · price of a kilowatt-hour)

busy hours; ``--utilization`` is the share of the calendar in which it is busy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.speed.step_time import StepTime

__all__ = ["BreakEven", "Cost", "Workload", "cost_at", "cost_of"]

SECONDS_PER_HOUR = 3600.0
HOURS_PER_MONTH = 365.25 * 24 / 12
MILLION = 1e6
_KILO = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How much is trained, and the prices that the user knows better than the catalogue.

    Attributes:
        tokens: of the whole run; None without one.
        samples: sequences of one epoch, each as long as the plan's.
        epochs: passes over them.
        usd_per_gpu_hour: rent of one GPU; None: the catalogue's.
        usd_per_kwh: price of electricity; None leaves it out of the comparison.
        utilization: share of the calendar in which an owned GPU is busy.
        purchase_usd: price of one GPU with its share of the machine; None: the catalogue's.
        pue: power of the whole machine room for each watt of the GPUs.
    """

    tokens: float | None = None
    samples: float | None = None
    epochs: float = 1.0
    usd_per_gpu_hour: float | None = None
    usd_per_kwh: float | None = None
    utilization: float = 1.0
    purchase_usd: float | None = None
    pue: float = 1.0

    def __post_init__(self) -> None:
        for name in ("tokens", "samples", "epochs", "usd_per_gpu_hour", "purchase_usd"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{_option(name)} must be positive, got {value:g}")
        if self.usd_per_kwh is not None and self.usd_per_kwh < 0:
            raise ValueError(f"--usd-per-kwh must not be negative, got {self.usd_per_kwh:g}")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"--utilization must be in (0, 1], got {self.utilization:g}")
        if self.pue < 1:
            raise ValueError(f"--pue must be at least 1, got {self.pue:g}")
        if self.tokens is not None and self.samples is not None:
            raise ValueError("--tokens and --samples both say how much is trained: give one")

    def total_tokens(self, config: TrainConfig) -> float | None:
        """Tokens of the whole run, or None where nobody said how much is trained."""
        if self.samples is not None:
            return self.samples * self.epochs * (config.seq_len + config.source_len)
        return None if self.tokens is None else self.tokens * self.epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """When an owned GPU is cheaper than a rented one.

    Attributes:
        busy_hours: hours of work that pay for it; None: it never does (power costs more than rent).
        months: of the calendar at the given utilization; None likewise.
        purchase_usd: price of one GPU.
        source: where that price is from.
    """

    busy_hours: float | None
    months: float | None
    purchase_usd: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Dollars and energy; None where a price or a quantity is not known.

    Attributes:
        usd_per_hour: rent of all GPUs.
        usd_per_million_tokens: rent while a million tokens are trained.
        price_source: where the rent is from, with its day.
        tokens: of the run, if somebody said so.
        hours: it takes.
        usd: its rent.
        kwh: energy of the GPUs at full board power, times the PUE.
        usd_power: what that costs.
        break_even: renting against buying.
        notes: what is assumed or missing, one line each.
    """

    usd_per_hour: float | None
    usd_per_million_tokens: float | None
    price_source: str
    tokens: float | None = None
    hours: float | None = None
    usd: float | None = None
    kwh: float | None = None
    usd_power: float | None = None
    break_even: BreakEven | None = None
    notes: tuple[str, ...] = ()


def cost_of(
    config: TrainConfig, step: StepTime | None, workload: Workload | None = None
) -> Cost | None:
    """The cost of a configuration; None without ``--gpu`` or where the step is not modelled."""
    if step is None:
        return None
    return cost_at(config, step.tokens_per_second, workload or Workload())


def cost_at(config: TrainConfig, tokens_per_second: float, workload: Workload) -> Cost | None:
    """The cost of a configuration that trains so many tokens a second; None without a GPU."""
    if config.gpu is None:
        return None
    rent, source = _rent(config, workload)
    hourly = None if rent is None else rent * config.gpus
    tokens = workload.total_tokens(config)
    hours = None if tokens is None else tokens / tokens_per_second / SECONDS_PER_HOUR
    kwh = _energy(config, workload, hours)
    priced = kwh is not None and workload.usd_per_kwh is not None
    return Cost(
        usd_per_hour=hourly,
        usd_per_million_tokens=_per_million(hourly, tokens_per_second),
        price_source=source,
        tokens=tokens,
        hours=hours,
        usd=None if hours is None or hourly is None else hours * hourly,
        kwh=kwh,
        usd_power=kwh * workload.usd_per_kwh if priced else None,  # type: ignore[operator]
        break_even=_break_even(config, workload, rent),
        notes=tuple(_notes(config, workload, rent, hours)),
    )


def _rent(config: TrainConfig, workload: Workload) -> tuple[float | None, str]:
    if workload.usd_per_gpu_hour is not None:
        return workload.usd_per_gpu_hour, "--usd-per-gpu-hour"
    price = config.gpu.rental_usd_per_hour if config.gpu else None
    return (price.usd, f"{price.source}, {price.date}") if price else (None, "")


def _per_million(hourly: float | None, tokens_per_second: float) -> float | None:
    if hourly is None or not tokens_per_second:
        return None
    return hourly / SECONDS_PER_HOUR / tokens_per_second * MILLION


def _kilowatts(config: TrainConfig, workload: Workload) -> float | None:
    """Power of one GPU at full load with its share of the machine room."""
    if config.gpu is None or config.gpu.tdp_watts is None:
        return None
    return config.gpu.tdp_watts * workload.pue / _KILO


def _energy(config: TrainConfig, workload: Workload, hours: float | None) -> float | None:
    power = _kilowatts(config, workload)
    return None if power is None or hours is None else power * hours * config.gpus


def _break_even(config: TrainConfig, workload: Workload, rent: float | None) -> BreakEven | None:
    price = config.gpu.purchase_usd if config.gpu else None
    paid = workload.purchase_usd or (price.usd if price else None)
    if paid is None or rent is None:
        return None
    power = (_kilowatts(config, workload) or 0.0) * (workload.usd_per_kwh or 0.0)
    busy = paid / (rent - power) if rent > power else None
    named = workload.purchase_usd is not None or price is None
    return BreakEven(
        busy_hours=busy,
        months=None if busy is None else busy / workload.utilization / HOURS_PER_MONTH,
        purchase_usd=paid,
        source="--purchase-usd" if named else f"{price.source}, {price.date}",  # type: ignore[union-attr]
    )


def _notes(
    config: TrainConfig, workload: Workload, rent: float | None, hours: float | None
) -> list[str]:
    notes = []
    name = config.gpu.name if config.gpu else ""
    if rent is None:
        notes.append(f"no rental price of {name} in the catalogue: give --usd-per-gpu-hour")
    if hours is not None and _kilowatts(config, workload) is None:
        notes.append(f"no board power of {name} in the catalogue: energy is not known")
    elif hours is not None:
        room = "without host and cooling (--pue)" if workload.pue == 1 else f"PUE {workload.pue:g}"
        notes.append(f"energy: GPUs at full board power, {room}")
    if workload.purchase_usd is not None and workload.usd_per_kwh is None:
        notes.append("break-even without electricity: give --usd-per-kwh")
    return notes


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
