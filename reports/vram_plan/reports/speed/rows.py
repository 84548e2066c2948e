"""Measured rows as step times: what a run's published speed says of the seconds of one step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.speed.fp8 import in_fp8
from vram_plan.estimator.speed.step_time import StepWork, step_work
from vram_plan.profiles.measured import Invalid, Row
from vram_plan.profiles.model import ModelSpec
from vram_plan.reports.speed.kernels_of_row import (
    divides_sequence,
    recipe_of_row,
    with_kernels,
)
from vram_plan.reports.speed.machine_of_row import machine_of_row
from vram_plan.reports.validate.model_of_row import model_of_row
from vram_plan.reports.validate.options_of_row import options_of_row

__all__ = ["Timed", "TimedRows", "read_timed", "seconds_of_row"]

_NARROW = frozenset({"fp8", "mxfp8", "nvfp4"})
_PRECISIONS = frozenset({"bf16", "fp16", "fp32"}) | _NARROW


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A row whose step time is known and whose configuration can be planned.

    Attributes:
        row: the run.
        config: its configuration.
        work: what its step computes and sends.
        seconds: of one optimizer step as published.
    """

    row: Row
    config: TrainConfig
    work: StepWork
    seconds: float

    @property
    def quality(self) -> str:
        """Trust in the speed."""
        return self.row.speed_quality or self.row.quality


@dataclass(slots=True, kw_only=True)
class TimedRows:
    """What came of a file of rows.

    Attributes:
        timed: rows that can be predicted.
        skipped: rows with a speed that cannot, by name, and why.
    """

    timed: list[Timed] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def read_timed(rows: Iterable[Row | Invalid]) -> TimedRows:
    """Rows that have a speed, and why some of them cannot be predicted."""
    found = TimedRows()
    for row in rows:
        if isinstance(row, Invalid) or row.outcome != "ok" or not _has_speed(row):
            continue
        try:
            found.timed.append(_timed(row))
        except ValueError as error:
            found.skipped[row.id] = str(error)
    return found


def _timed(row: Row) -> Timed:
    _refuse(row)
    model = model_of_row(row)
    if row.trainer == "composer" and model.model_type == "mpt":
        model, row = _composed(model, row.seq_len or 0), replace(row, autocast=None)
    options = options_of_row(_in_16_bits(row), model)
    if options.get("gpu") is None:
        raise ValueError(f"GPU {row.gpu or 'not stated'} is not in the catalogue")
    options |= machine_of_row(row, options["gpu"])
    options["stack"] = with_kernels(row, options["stack"])
    if divides_sequence(row):
        options["sequence_parallel"] = True
    recipe = recipe_of_row(row, options["gpu"])
    config = replace(resolve(model, options), assumptions=())
    work = step_work(config)
    return Timed(
        row=row,
        config=config,
        work=in_fp8(work, recipe) if recipe else work,
        seconds=seconds_of_row(row, config),
    )


def _in_16_bits(row: Row) -> Row:
    """The same run with the linear layers' products in bf16, as the plan has them."""
    if row.precision not in _NARROW:
        return row
    weights = "bf16" if row.weights_dtype == "fp8" else row.weights_dtype
    return replace(row, precision="bf16", weights_dtype=weights)


def _refuse(row: Row) -> None:
    """Refuse what decides about the speed and is not stated, or not modelled.

    Raises:
        ValueError: saying what.
    """
    if row.lengths != "fixed":
        raise ValueError("real lengths are unknown")
    if "attend only within themselves" in (row.notes or ""):
        raise ValueError("packed samples of unknown lengths attend only within themselves")
    if row.precision not in _PRECISIONS:
        raise ValueError(f"products in {row.precision or 'an unknown dtype'} are not timed")
    if row.trainer == "torchtune" and row.loss == "chunked":
        raise ValueError("torchtune's chunked loss multiplies in 16 bits, the planned one in 32")


def _composed(model: ModelSpec, length: int) -> ModelSpec:
    """llm-foundry's own MPT, which has flash attention and learned positions, as transformers' OPT.

    The same products and norms in the same places; transformers' MPT has neither. Its norms run in
    16 bits (``norm_type: low_precision_layernorm``), as OPT's do without autocast. Its table of
    positions is as long as the sequences (``max_seq_len``).
    """
    positions = max(length, model.max_position_embeddings or 2048)
    return replace(
        model,
        model_type="opt",
        position_embedding_type="learned",
        position_embedding_rows=positions,
        max_position_embeddings=positions,
        hidden_act="gelu",
    )


def _has_speed(row: Row) -> bool:
    return any((row.tokens_per_second_per_gpu, row.step_seconds, row.samples_per_second))


def seconds_of_row(row: Row, config: TrainConfig) -> float:
    """Seconds of one optimizer step from what the row states, the most direct figure first.

    Raises:
        ValueError: where it states none that can be converted.
    """
    sequences = config.data_parallel * config.micro_batch * config.grad_accum
    if row.step_seconds:
        return row.step_seconds
    if row.tokens_per_second_per_gpu:
        return sequences * config.seq_len / row.tokens_per_second_per_gpu / config.gpus
    if row.samples_per_second:
        return sequences / row.samples_per_second
    raise ValueError("no speed that can be converted to a step time")
