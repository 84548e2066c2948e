"""Published runs in 8 bits: predicted, not skipped, and as near as their 16-bit neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vram_plan.profiles.measured import Invalid, Row, read_rows
from vram_plan.reports.validate.judge import Comparison
from vram_plan.reports.validate.model_of_row import model_of_row
from vram_plan.reports.validate.options_of_row import options_of_row
from vram_plan.reports.validate.precision_of_row import precision_of_row, recipe_of_row
from vram_plan.reports.validate.run import Planner, judge

ROWS = {row.id: row for row in read_rows() if not isinstance(row, Invalid)}
KIB = 1024


def compared(row: str) -> dict[str, Comparison]:
    found, _ = judge(ROWS[row], Planner())
    return {one.metric: one for one in found}


@pytest.mark.parametrize(
    ("row", "peak", "between"),
    [
        ("mcore-072", 0.015, 0.010),  # H100, weights in 8 bits alone
        ("mcore-073", 0.020, 0.010),  # GB200: no transposes
        ("mcore-074", 0.005, 0.005),
        ("mcore-075", 0.050, 0.005),
    ],
)
def test_megatrons_golden_values_in_8_bits(row: str, peak: float, between: float) -> None:
    found = compared(row)
    assert abs(found["allocated_peak_bytes"].error) < peak
    assert abs(found["allocated_final_bytes"].error) < between


def test_hopper_keeps_a_transpose_of_every_linear_weight_and_blackwell_does_not() -> None:
    """12 blocks of 12 · 512² weights over four tensor ranks, one byte each."""
    hopper, blackwell = (
        compared(row)["allocated_final_bytes"] for row in ("mcore-074", "mcore-075")
    )
    transposes = 12 * 12 * 512**2 // 4
    assert hopper.measured - blackwell.measured == pytest.approx(transposes, abs=2 * KIB)
    assert hopper.predicted - blackwell.predicted == pytest.approx(transposes, abs=2 * KIB)


def test_every_row_in_8_bits_that_names_a_counter_is_predicted() -> None:
    """Left out: a compiled loss, other recomputed modules, Megatron's FSDP."""
    planner, left = Planner(), {}
    for row in ROWS.values():
        if row.precision in {"fp8", "mxfp8", "nvfp4"} and row.has_memory and row.outcome == "ok":
            try:
                planner.plan(row, None)
            except ValueError as error:
                left[row.id] = str(error)
    assert set(left) == {"titan-031", "titan-032", "mbridge-090", "mbridge-091", "mcore-076"}
    assert not any("precision" in reason or "dtype" in reason for reason in left.values())


def test_precisions_of_a_row() -> None:
    row = ROWS["mcore-074"]
    model = model_of_row(row)
    options = precision_of_row(row, model)
    assert options["precision"] == options["weights_dtype"] == "fp8"
    assert options["fp8_recipe"] == "te-current"  # "tensorwise", as the notes have it
    mx = replace(row, precision="mxfp8", weights_dtype="bf16", notes=None)
    assert recipe_of_row(mx) == "te-mxfp8"
    assert precision_of_row(mx, model)["precision"] == "fp8"
    assert recipe_of_row(replace(row, notes=None)) == "te-delayed"
    with pytest.raises(ValueError, match="precision nvfp4 cannot be planned"):
        precision_of_row(replace(row, precision="nvfp4"), model)
    script = ROWS["swiftex-003"]
    found = options_of_row(script, model_of_row(script))
    assert found["fp8_recipe"] == "te-blockwise"
    assert found["weights_dtype"] == "fp8"
    assert found["state_dtype"] == "bf16"
    deepspeed = replace(script, engine="deepspeed", precision="bf16")
    with pytest.raises(ValueError, match="state dtype bf16 with deepspeed"):
        precision_of_row(deepspeed, model)


def test_a_titan_row_is_torchaos() -> None:
    row: Row = ROWS["titan-003"]
    options = options_of_row(row, model_of_row(row))
    assert (options["precision"], options["fp8_recipe"]) == ("fp8", "ao-tensorwise")
    found = compared("titan-003")["reserved_peak_bytes"]
    assert abs(found.error) < 0.02


@pytest.mark.parametrize("name", ["nemo-010", "mbridge-022", "mbridge-024"])
def test_tables_of_speeds_say_nothing_of_memory(name: str) -> None:
    """What they recompute is not printed: the speed is compared, no outcome is judged."""
    found, outcome = judge(ROWS[name], Planner())
    assert outcome is None
    assert {one.metric for one in found} == {"tokens_per_second_per_gpu"}
    assert all(abs(one.error) < 0.25 for one in found)
    stated = replace(ROWS[name], checkpointing="full")
    assert judge(stated, Planner())[1] is not None
