"""Profiles of measured machines: written, read back, planned for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vram_plan.profiles.collective_rates import CollectiveRate, MeasuredLinks, links_of
from vram_plan.profiles.efficiency import curves_in, curves_of, load_curves
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.machine import THIS, Machine, read_machine, this_file, write_machine


def machine() -> Machine:
    curves = replace(load_curves()[0], name=THIS, source='a "quoted" place', gpus=("a", "b"))
    gpu = replace(find_gpu("a100-80gb-sxm"), name=THIS, rental_usd_per_hour=None)
    return Machine(gpu=replace(gpu, purchase_usd=None), curves=curves)


def test_a_profile_reads_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "card.toml")
    write_machine(machine(), path)
    found = read_machine(path)
    assert found.curves == machine().curves
    assert replace(found.gpu, source="x") == replace(machine().gpu, source="x")
    assert dict(found.gpu.peak_flops) == dict(machine().gpu.peak_flops)


def test_its_card_has_its_own_curves(tmp_path: Path) -> None:
    path = str(tmp_path / "card.toml")
    slow = replace(machine().curves, matmul=0.1)
    write_machine(replace(machine(), curves=slow), path)
    assert curves_of(read_machine(path).gpu) == slow


def test_its_links_read_as_they_were_written(tmp_path: Path) -> None:
    path = str(tmp_path / "node.toml")
    rates = tuple(
        CollectiveRate(kind=kind, ranks=ranks, latency_seconds=1.5e-5, bytes_per_s=ranks * 1e11)
        for kind in ("all-reduce", "point-to-point")
        for ranks in (2, 8)
    )
    links = MeasuredLinks(rates=rates)
    write_machine(replace(machine(), links=links), path)
    assert read_machine(path).links == links
    assert links_of(read_machine(path).gpu) == links
    assert links.rate("all-reduce", 4) == rates[1]  # no four: the next larger group
    assert links.rate("all-reduce", 16) == rates[1]
    assert links.rate("all-gather", 2) is None


def test_a_profile_of_an_earlier_version_has_no_links(tmp_path: Path) -> None:
    path = str(tmp_path / "card.toml")
    write_machine(machine(), path)
    assert "collectives" not in Path(path).read_text(encoding="utf-8")
    assert read_machine(path).links is None
    assert links_of(read_machine(path).gpu) is None
    assert links_of(find_gpu("a100-80gb-sxm")) is None


@pytest.mark.parametrize("row", ["ranks = 1", "ranks = 2\nspeed = 1", "ranks = 2"])
def test_bad_links_are_refused_by_file(tmp_path: Path, row: str) -> None:
    path = tmp_path / "bad-links.toml"
    write_machine(machine(), str(path))
    rates = "latency_seconds = 0.1\nbytes_per_s = 1.0\n" if row != "ranks = 2" else ""
    text = path.read_text(encoding="utf-8") + f"[[collectives]]\nkind = 'x'\n{rates}{row}\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad-links\.toml"):
        read_machine(str(path))


def test_this_lies_where_configurations_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert this_file() == str(tmp_path / "vram-plan" / "this.toml")
    with pytest.raises(ValueError, match=r"--gpu this: no .*bench calibrate"):
        read_machine()
    write_machine(machine(), this_file())
    assert read_machine().gpu.name == THIS


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--calibration nowhere\.toml: no such file"):
        read_machine("nowhere.toml")
    for text in ("", "not a table", "[gpu]\nname = 'x'\n", "[gpu]\n[family.this]\nmatmul = 1\n"):
        path = tmp_path / "bad.toml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"bad\.toml"):
            read_machine(str(path))


def test_curves_refuse_what_is_no_share(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="memory must be a share"):
        replace(load_curves()[0], memory=2.0)
    with pytest.raises(ValueError, match="launch_seconds must not be negative"):
        replace(load_curves()[0], launch_seconds=-1.0)
    path = tmp_path / "curves.toml"
    path.write_text("[family.x]\nspeed = 1.0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no curve speed"):
        curves_in(str(path))
