"""Step times beside the published ones: the shipped curves, and how they are fitted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from vram_plan.estimator import choices
from vram_plan.estimator.speed.fp8 import recipe_named
from vram_plan.profiles.efficiency import (
    EFFICIENCY_FILE,
    Curves,
    curves_in,
    curves_of,
    load_curves,
)
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.measured import Row, read_rows
from vram_plan.profiles.stack import Stack
from vram_plan.reports.fit_speed import write
from vram_plan.reports.speed.errors import Errors, by_source, summary
from vram_plan.reports.speed.families import FAMILIES, family_of
from vram_plan.reports.speed.fit import error, fit_family, start_of
from vram_plan.reports.speed.kernels_of_row import (
    divides_sequence,
    recipe_of_row,
    with_kernels,
)
from vram_plan.reports.speed.machine_of_row import machine_of_row, network_of_notes
from vram_plan.reports.speed.rows import TimedRows, read_timed


@cache
def found() -> TimedRows:
    return read_timed(read_rows())


@cache
def errors() -> dict[str, Errors]:
    pairs = ((row, error(row, curves_of(row.work.gpu))) for row in found().timed)
    return {each.name: each for each in by_source(pairs)}


def test_published_errors_do_not_grow() -> None:
    """The targets are medians of 8 % and 90 % within 25 % on rows of quality A."""
    best, good = errors()["all A"], errors()["all B"]
    assert len(best.signed) >= 310
    assert best.quantile(0.5) <= 0.08
    assert best.quantile(0.9) <= 0.25
    assert len(good.signed) >= 250
    assert good.quantile(0.5) <= 0.10


def test_every_row_with_a_speed_is_predicted_or_explained() -> None:
    names = {row.row.id for row in found().timed}
    assert not names & set(found().skipped)
    assert len(names) + len(found().skipped) > 1000
    assert all(found().skipped.values())


def test_the_table_names_sources_and_figures() -> None:
    text = summary([(found().timed[0], 0.1), (found().timed[0], -0.3)])
    assert found().timed[0].row.family in text
    assert "30.0%" in text


def test_machines_of_rows() -> None:
    assert network_of_notes("table A100 with 1600 Gbps node-node interconnect") == 200e9
    assert network_of_notes("4 x 100 Gb RoCE between nodes") == 50e9
    assert network_of_notes("nothing") is None
    row = Row(id="x", group="x/y", outcome="ok", quality="A", gpus=16, gpus_per_node=8)
    card = find_gpu("a100-80gb")
    assert machine_of_row(row, card)["gpu"].name == "a100-80gb-sxm"
    assert machine_of_row(replace(row, gpus=4, gpus_per_node=4), card)["gpu"] is card


def test_machines_that_a_source_stands_in() -> None:
    """Jean Zay's nodes of four V100, whose network the notes of the rows do not state."""
    row = Row(id="x", group="bigscience/y", outcome="ok", quality="B", gpus=8, gpu="v100-32gb")
    found = machine_of_row(row, find_gpu("v100-32gb"))
    assert (found["gpu"].name, found["node"].name) == ("v100-32gb-sxm", "jean-zay-v100-32gb")
    assert found["node"].network_bytes_per_s == 50e9


@pytest.mark.parametrize(
    ("model", "notes", "kernels"),
    [
        ("mosaicml/mpt-7b", "table A100 80GB", "triton"),
        ("mosaicml/mpt-7b", "table H100 80GB BF16 (Large Scale, >= 128 GPUs)", ""),
        ("mosaicml/mpt-13b", "table H100 80GB BF16 (Large Scale, >= 128 GPUs)", "triton"),
    ],
)
def test_kernels_that_the_commands_of_a_source_name(model: str, notes: str, kernels: str) -> None:
    row = Row(
        id="x",
        group="llm-foundry/y",
        outcome="ok",
        quality="B",
        trainer="composer",
        model=model,
        notes=notes,
    )
    assert with_kernels(row, Stack()).version("flash-attn") == kernels
    assert with_kernels(replace(row, trainer="nemo"), Stack()) == Stack()


def test_recipes_of_8_bits() -> None:
    hopper = find_gpu("h100-80gb-sxm")
    row = Row(id="x", group="nemo/y", outcome="ok", quality="B", trainer="nemo", precision="fp8")
    named = {
        name: recipe_named(name, hopper, kept=name.startswith("te-"), compiled=True)
        for name in choices.FP8_RECIPES
    }
    row = replace(row, engine="megatron")
    assert recipe_of_row(row, hopper) == named["te-delayed"]
    assert recipe_of_row(replace(row, precision="bf16"), hopper) is None
    assert recipe_of_row(replace(row, trainer="megatron-bridge"), hopper) == named["te-current"]
    said = replace(row, notes="FP8 hybrid tensorwise")
    assert recipe_of_row(said, hopper) == named["te-current"]
    titan = replace(row, trainer="torchtitan", engine="fsdp2")
    assert recipe_of_row(titan, hopper) == named["ao-tensorwise"]
    by_row = replace(titan, notes="float8 linear layers rowwise")
    assert recipe_of_row(by_row, hopper) == named["ao-rowwise"]
    with pytest.raises(ValueError, match="a100-80gb-sxm has no fp8 products"):
        recipe_of_row(row, find_gpu("a100-80gb-sxm"))
    with pytest.raises(ValueError, match="h100-80gb-sxm has no fp4 products"):
        recipe_of_row(replace(row, precision="nvfp4"), hopper)
    assert divides_sequence(replace(row, tensor_parallel=4))
    assert not divides_sequence(row)


def test_a_fit_comes_nearer_to_its_rows() -> None:
    family = FAMILIES[0]
    rows = [row for row in found().timed if row.row.family == "korthikanti"]
    fitted = fit_family(family, rows, {}, 60)

    def miss(curves: Curves) -> float:
        return sum(abs(error(row, curves)) for row in rows)

    assert miss(fitted) < miss(start_of(family, {}))
    assert fit_family(family, [], {}, 60) == start_of(family, {})


def test_families_cover_their_cards() -> None:
    families = {name: family_of(find_gpu(name)) for name in ("a100-40gb", "h100-96gb-sxm", "l4")}
    assert families["a100-40gb"] is FAMILIES[0]
    assert families["h100-96gb-sxm"] is FAMILIES[1]
    assert families["l4"] is None


def test_the_file_is_what_the_command_writes(tmp_path: Path) -> None:
    path = tmp_path / "efficiency.toml"
    write({curves.name: curves for curves in load_curves()}, path)
    shipped = Path(EFFICIENCY_FILE).read_text(encoding="utf-8").splitlines()
    assert [
        line for line in path.read_text(encoding="utf-8").splitlines() if "date" not in line
    ] == [line for line in shipped if "date" not in line]
    assert curves_in(str(path)) == load_curves()


def test_unknown_speeds_are_refused() -> None:
    row = found().timed[0].row
    for change in (
        {"lengths": "limit"},
        {"precision": "fp8"},
        {"gpu": "abacus"},
        {"trainer": "torchtune", "loss": "chunked"},
    ):
        changed = read_timed([replace(row, **change)])  # type: ignore[arg-type]
        assert not changed.timed
        assert list(changed.skipped) == [row.id]


def test_quantiles() -> None:
    some = Errors(name="x", signed=(-0.4, 0.1, 0.2))
    assert some.quantile(0.5) == pytest.approx(0.2)
    assert some.bias == pytest.approx(0.1)
