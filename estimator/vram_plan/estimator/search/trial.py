"""One configuration: the micro-batch it takes and what it is worth, or why it is out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.search import tally
from vram_plan.estimator.search.largest_batch import Room, largest_that_fits
from vram_plan.estimator.search.rent import usd_per_hour
from vram_plan.estimator.search.room import Need, need, room
from vram_plan.estimator.search.space import Space
from vram_plan.estimator.search.speed import Modelled, Speed
from vram_plan.estimator.search.variant import varied
from vram_plan.estimator.search.wish import Candidate, Wish

MOST_SEQUENCES = 1_048_576
"""The largest micro-batch that `refusals` lets through."""


class Needs(Protocol):
    """What a configuration needs with a micro-batch and so many of them a step."""

    def __call__(self, config: TrainConfig, micro_batch: int, accum: int) -> Need:
        """Bytes."""

    def largest(self, left: Room, most: int) -> int:
        """The largest micro-batch that fits, which has been read; 0 where one sequence does not.

        Args:
            left: reads a micro-batch and tells what is left over.
            most: the largest that may be taken.
        """


class Plain:
    """A ledger for every question; nothing remembered, nothing guessed."""

    def __call__(self, config: TrainConfig, micro_batch: int, accum: int) -> Need:
        """From the ledger."""
        return need(varied(config, micro_batch=micro_batch, grad_accum=accum))

    def largest(self, left: Room, most: int) -> int:
        """From readings alone: it fits and the next one up does not."""
        return largest_that_fits(left, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A configuration with its micro-batch; or, where none fits, the one that comes nearest.

    Attributes:
        config: the configuration, whatever its micro-batch says.
        batch: sequences in a micro-batch, and micro-batches in a step.
        need: what it needs.
        room: bytes left over, negative where none fits.
    """

    config: TrainConfig
    batch: tuple[int, int]
    need: Need
    room: int

    @property
    def chosen(self) -> TrainConfig:
        """The configuration with its micro-batch."""
        micro_batch, accum = self.batch
        return varied(self.config, micro_batch=micro_batch, grad_accum=accum)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a configuration is judged by."""

    space: Space
    wish: Wish
    needs: Needs = field(default_factory=Plain)
    speed: Speed = field(default_factory=Modelled)


def judge(trial: Trial, order: int, config: TrainConfig) -> Candidate | tally.Out:
    """The configuration with its micro-batch and its figures, or why it is out."""
    return conclude(trial, order, config, choose(trial, config))


def conclude(
    trial: Trial, order: int, config: TrainConfig, chosen: Chosen | None
) -> Candidate | tally.Out:
    """The same, the micro-batch chosen."""
    if chosen is None:
        return tally.Out(tally.NOT_DIVISIBLE, f"{config.data_parallel} ranks")
    if chosen.room < 0:
        return tally.Out(tally.MISSES, describe(chosen.chosen), -chosen.room)
    return _appraise(trial, order, chosen)


def _appraise(trial: Trial, order: int, chosen: Chosen) -> Candidate | tally.Out:
    """A configuration that fits, with its speed and price."""
    config, wish, each = chosen.chosen, trial.wish, None
    if wish.needs_speed:
        each = trial.speed.seconds_per_token(config)
        if each is None:
            return tally.Out(tally.NO_SPEED, describe(config))
    if wish.deadline_seconds is not None:
        tokens = wish.tokens(config)
        assert each is not None
        assert tokens is not None
        if each * tokens > wish.deadline_seconds:
            return tally.Out(tally.TOO_LATE, describe(config))
    return Candidate(
        order=order,
        config=config,
        required_bytes=chosen.need.required,
        usable_bytes=None if config.gpu is None else config.gpu.usable_bytes,
        usd_per_hour=usd_per_hour(wish, config.gpus, config.gpu),
        seconds_per_token=each,
    )


def describe(config: TrainConfig) -> str:
    """A configuration in a few words, for messages."""
    where = f"{config.gpus} × {config.gpu.name}" if config.gpu else f"{config.gpus} GPUs"
    stage = f" zero {config.zero}" if config.zero is not None else ""
    return (
        f"{where}, {config.engine}{stage}, {config.method}, checkpointing {config.checkpointing}, "
        f"micro-batch {config.micro_batch}"
    )


Batch = tuple[int, int]
"""Sequences in a micro-batch, and micro-batches in a step."""


def batches(trial: Trial, config: TrainConfig) -> tuple[Batch, ...] | None:
    """What may be taken, smallest first; None where any micro-batch may.

    With ``--global-batch`` accumulation makes up what the ranks do not hold at once.
    """
    wanted, whole = trial.space.micro_batches, trial.wish.global_batch
    if whole is None:
        return None if wanted is None else tuple((b, config.grad_accum) for b in sorted(wanted))
    share, rest = divmod(whole, config.data_parallel)
    if rest:
        return ()
    allowed: Sequence[int] = range(1, share + 1) if wanted is None else sorted(wanted)
    return tuple((b, share // b) for b in allowed if share % b == 0)


def choose(trial: Trial, config: TrainConfig) -> Chosen | None:
    """The micro-batch that a configuration takes; None where none divides the global batch.

    The largest that fits: most tokens share launches, weights and gathers. With
    ``--objective memory`` the one that needs least.
    """
    listed = batches(trial, config)
    if listed == ():
        return None
    if trial.wish.objective == "memory":
        listed = listed or ((1, config.grad_accum),)
        return max((_with_room(trial, config, b) for b in listed), key=lambda one: one.room)
    if listed is None:
        return _any_batch(trial, config)
    nearest: Chosen | None = None
    for batch in reversed(listed):
        chosen = _with_room(trial, config, batch)
        if chosen.room >= 0:
            return chosen
        if nearest is None or chosen.room > nearest.room:
            nearest = chosen
    return nearest


def _with_room(trial: Trial, config: TrainConfig, batch: Batch) -> Chosen:
    needed = trial.needs(config, *batch)
    return Chosen(config=config, batch=batch, need=needed, room=room(config, needed))


def _any_batch(trial: Trial, config: TrainConfig) -> Chosen:
    read: dict[int, Chosen] = {}

    def left(micro_batch: int) -> int:
        if micro_batch not in read:
            read[micro_batch] = _with_room(trial, config, (micro_batch, config.grad_accum))
        return read[micro_batch].room

    found = trial.needs.largest(left, MOST_SEQUENCES)
    return read[max(1, found)]
