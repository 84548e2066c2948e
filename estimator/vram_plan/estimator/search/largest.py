"""``--max-batch`` and ``--max-seq-len``: the largest that fits one configuration, exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.refusals import option, refuse
from vram_plan.estimator.search.largest_batch import largest_that_fits
from vram_plan.estimator.search.room import need, room

GIB = 2**30
_ASKED = {"micro_batch": "--max-batch", "seq_len": "--max-seq-len"}
_MOST = {"micro_batch": 1_048_576, "seq_len": 1_073_741_824}
"""The largest values that `refusals` lets through."""


class _Look(NamedTuple):
    """A configuration, bytes left over (negative: missing), why it is refused."""

    config: TrainConfig
    room: int
    refused: str = ""


def largest(config: TrainConfig, name: str) -> TrainConfig:
    """The configuration with the largest micro-batch or length that fits; a note says so.

    Args:
        config: resolved, with a GPU.
        name: ``micro_batch`` or ``seq_len``.

    Raises:
        ValueError: one line: not even the smallest fits, or something else is refused.
    """
    unit = 2 * config.cp if name == "seq_len" and config.cp > 1 else 1  # two equal pieces a rank
    read: dict[int, _Look] = {}

    def left(count: int) -> int:
        if count not in read:
            read[count] = _look(_with(config, name, count * unit))
        return read[count].room

    found = largest_that_fits(left, _MOST[name] // unit)
    if not found:
        said = read[1].refused or f"{option(name)} {unit} misses by {_amount(-read[1].room)}"
        raise ValueError(
            f"{_ASKED[name]}: {said}; shard more, quantize or choose --checkpointing full"
        )
    return _noted(read[found].config, name, _beyond(read, found, unit))


def _with(config: TrainConfig, name: str, value: int) -> TrainConfig:
    if name == "micro_batch":
        return replace(config, micro_batch=value)
    source = value if config.source_len == config.seq_len else config.source_len
    return replace(config, seq_len=value, source_len=source)


def _look(config: TrainConfig) -> _Look:
    """A configuration and its room; what is refused has none."""
    try:
        refuse(config, {})
    except ValueError as error:
        return _Look(config, -1, str(error))
    return _Look(config, room(config, need(config)))


def _beyond(read: dict[int, _Look], found: int, unit: int) -> str:
    """What stops the next one up."""
    if found + 1 not in read:
        return "no larger one is planned"
    beyond = read[found + 1]
    return beyond.refused or f"{(found + 1) * unit:,} misses by {_amount(-beyond.room)}"


def _noted(config: TrainConfig, name: str, beyond: str) -> TrainConfig:
    """Its notes say what is found, in place of what they said of the length before."""
    assert config.gpu is not None
    value, limit = getattr(config, name), config.model.max_position_embeddings
    notes = [note for note in config.assumptions if not note.startswith(f"{option(name)} ")]
    notes.append(f"{option(name)} {value} is the largest that fits {config.gpu.name}: {beyond}")
    if name == "seq_len" and limit and value > limit:
        notes.append(f"{config.model.name} was made for at most {limit:,} positions")
    return replace(config, assumptions=tuple(notes))


def _amount(nbytes: int) -> str:
    return f"{nbytes / GIB:,.2f} GiB" if nbytes >= GIB // 100 else f"{nbytes:,} bytes"
