"""Speeds of rows, what a source says once for its rows, and fits judged without a source."""

from functools import cache

import pytest

from vram_plan.profiles.measured import Row, read_rows
from vram_plan.reports.crossfit import Sample
from vram_plan.reports.readings import Reading
from vram_plan.reports.source_folds import source_errors
from vram_plan.reports.validate.document import to_document
from vram_plan.reports.validate.model_of_row import model_of_row
from vram_plan.reports.validate.options_of_row import options_of_row
from vram_plan.reports.validate.run import validate
from vram_plan.reports.validate.timing import SPEED_COLUMNS
from vram_plan.reports.validate.view import grids


@cache
def rows() -> dict[str, Row]:
    return {row.id: row for row in read_rows() if isinstance(row, Row)}


def options(name: str) -> dict[str, object]:
    row = rows()[name]
    return options_of_row(row, model_of_row(row))


def test_speeds_stand_beside_counters() -> None:
    found = validate([rows()["fms-a100-main-001"]])
    speeds = [one for one in found.comparisons if one.metric in SPEED_COLUMNS]
    assert {one.metric for one in speeds} >= {"tokens_per_second_per_gpu"}
    for one in speeds:
        assert one.predicted == one.said
        assert abs(one.error) < 0.5
        assert one.quality == "A"
    document = to_document(found)
    assert {row["metric"] for row in document["rows"]} > {one.metric for one in speeds}
    assert any(grid.title.startswith("worst speeds") for grid in grids(found, count=3))


def test_a_row_of_speed_alone_is_compared() -> None:
    name = next(
        row.id
        for row in rows().values()
        if row.family == "llm-foundry" and row.speed_quality in {"A", "B"} and row.lengths
    )
    found = validate([rows()[name]])
    assert [one.said is None for one in found.comparisons].count(True) == 0
    assert found.comparisons or found.skipped


def test_what_a_source_says_once() -> None:
    swift = options("swift1-001")
    assert swift["lengths"] == "3234.4,2547.5,4959"
    assert swift["amp"] is True
    assert swift["lora_dropout"] == 0.05
    assert "transformers=4.36" in str(swift["stack"])
    assert options("litgpt-022")["lora_targets"] == "q_proj,v_proj"


def _reading(source: str, index: int, factor: float) -> Reading:
    sample = Sample(
        group=f"{source}/{index % 3}",
        base=10**9 * (index + 1),
        parts=(1.0, 1e9, 0.0),
        measured=round(10**9 * (index + 1) + factor * 10**9),
    )
    return Reading(stratum="one GPU/hf/full", source=source, sample=sample)


def test_a_source_of_its_own_kind_shows() -> None:
    alike = [_reading("one", i, 1.0) for i in range(12)]
    alike += [_reading("two", i, 1.0) for i in range(12)]
    strange = [_reading("odd", i, 6.0) for i in range(6)]
    found = {one.source: one for one in source_errors([*alike, *strange])}
    assert found["one"].holds
    assert found["one"].unseen < 0.02
    assert found["odd"].unseen > 0.1
    assert found["odd"].rows == 6


@pytest.mark.parametrize("name", ["litgpt-022", "litgpt-023", "litgpt-047", "bloom-163"])
def test_failures_that_were_planned_to_fit(name: str) -> None:
    (outcome,) = validate([rows()[name]]).outcomes
    assert outcome.row.outcome == "oom"
    assert outcome.verdict == "does not fit"
