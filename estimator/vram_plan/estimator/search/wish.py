"""What is wanted of a configuration, and what one is worth."""

from __future__ import annotations

from dataclasses import dataclass, field

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.cost import Workload

OBJECTIVES = ("throughput", "cost", "time", "memory")
MILLION = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The objective and the constraints of a search.

    Attributes:
        objective: ``throughput`` (tokens a second, most first), ``time`` (seconds for the tokens
            asked for, least first: the same order), ``cost`` (dollars for them, least first) or
            ``memory`` (bytes required on a GPU, least first).
        top: how many plans are wanted.
        global_batch: sequences in one optimizer step over all ranks; accumulation follows from it.
        max_usd_per_hour: what the GPUs may cost together.
        workload: how much is trained, at prices that the user knows better than the catalogue.
        deadline_seconds: seconds the whole run may take.
    """

    objective: str = "memory"
    top: int = 5
    global_batch: int | None = None
    max_usd_per_hour: float | None = None
    workload: Workload = field(default_factory=Workload)
    deadline_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"--objective {self.objective}: choose from {', '.join(OBJECTIVES)}")
        positive = ("top", "global_batch", "max_usd_per_hour", "deadline_seconds")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                spelled = name.removesuffix("_seconds").replace("_", "-")
                raise ValueError(f"--{spelled} must be positive, got {value}")
        if self.deadline_seconds is not None and not self.sets_amount:
            raise ValueError("--deadline needs --tokens or --samples: what has to be done by then")

    @property
    def sets_amount(self) -> bool:
        """Whether it is known how much is trained."""
        return self.workload.tokens is not None or self.workload.samples is not None

    def tokens(self, config: TrainConfig) -> float | None:
        """Of the whole run, as a configuration counts them; None: nobody said how much."""
        return self.workload.total_tokens(config)

    @property
    def wants_front(self) -> bool:
        """Whether cost and time are what is weighed."""
        return self.objective != "memory"

    @property
    def needs_speed(self) -> bool:
        """Whether a step time has to be known."""
        return self.objective != "memory" or self.deadline_seconds is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A configuration that can be run.

    Attributes:
        order: its place in the space: the number of configurations before it.
        config: every option, resolved, the micro-batch chosen.
        required_bytes: on the fullest rank.
        usable_bytes: what the GPU asked about gives; None where none was asked about.
        usd_per_hour: all GPUs, on demand; None where no price is known.
        seconds_per_token: of the whole run, all GPUs together; None without a step time.
        ties: plans that come to the same (`ties.kind`), where they were asked for.
    """

    order: int
    config: TrainConfig
    required_bytes: int
    usable_bytes: int | None = None
    usd_per_hour: float | None = None
    seconds_per_token: float | None = None
    ties: tuple[Candidate, ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """Of all GPUs together."""
        return None if self.seconds_per_token is None else 1 / self.seconds_per_token

    @property
    def usd_per_token(self) -> float | None:
        """Rent of all GPUs while one token is trained on."""
        if self.seconds_per_token is None or self.usd_per_hour is None:
            return None
        return self.usd_per_hour / 3600 * self.seconds_per_token

    @property
    def headroom_bytes(self) -> int | None:
        """What stays free."""
        return None if self.usable_bytes is None else self.usable_bytes - self.required_bytes

    def worth(self, objective: str) -> float:
        """The figure that the objective wants small."""
        if objective == "memory":
            return float(self.required_bytes)
        figure = self.usd_per_token if objective == "cost" else self.seconds_per_token
        return float("inf") if figure is None else figure

    def rank(self, objective: str) -> tuple[float, float, int]:
        """What plans are sorted by: the objective, the rent per hour, the place in the space."""
        rent = float("inf") if self.usd_per_hour is None else self.usd_per_hour
        return (self.worth(objective), rent, self.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuledOut:
    """Configurations that are out for one reason.

    Attributes:
        reason: in words, without numbers.
        count: how many raw configurations.
        example: one of them in words.
        nearest_bytes: the least by which one of them misses, where bytes are the reason.
    """

    reason: str
    count: int
    example: str = ""
    nearest_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
        plans: the best, best first, each with those that tie with it.
        front: plans that no other beats in both cost and time, fastest first.
        ruled_out: counts by reason, most first; with ``fitting`` they sum to ``raw``.
        raw: configurations of the space, the micro-batch not counted.
        fitting: those that meet every constraint, as far as they were looked at.
        examined: ledgers that were computed.
        complete: False where the search was interrupted.
    """

    plans: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    ruled_out: tuple[RuledOut, ...]
    raw: int
    fitting: int
    examined: int
    complete: bool = True
