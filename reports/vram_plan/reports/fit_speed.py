"""Fit the efficiency curves of GPUs: ``python -m vram_plan.reports.fit_speed``.

Takes the project's own rows of quality A and B whose step time can be predicted, fits the curves
of each family and writes ``profiles/vram_plan/profiles/data/efficiency.toml``. It prints the errors
of the fit, and those of curves fitted without the source of each row. Takes about five minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

from vram_plan.profiles.efficiency import EFFICIENCY_FILE, Curves
from vram_plan.profiles.measured import read_rows
from vram_plan.reports.speed.errors import summary
from vram_plan.reports.speed.families import FAMILIES, PRIORS, family_of
from vram_plan.reports.speed.fit import EVALUATIONS, error, fit_family, held_out
from vram_plan.reports.speed.rows import Timed, read_timed

__all__ = ["fit", "write"]

_FIXED = ("architecture", "kind", "gpus", "source", "rows")
_HEAD = """\
# What families of GPUs reach of their peaks: profiles/efficiency.py says what each figure means.
# Written by `python -m vram_plan.reports.fit_speed`; seconds, and shares of the data sheet's peak.
"""


def usable(rows: Iterable[Timed]) -> list[Timed]:
    """Rows of quality A and B."""
    return [row for row in rows if row.quality != "C"]


def fit(rows: list[Timed], evaluations: int) -> dict[str, Curves]:
    """The curves of every family, and those of GPUs without rows."""
    known: dict[str, Curves] = {}
    for family in FAMILIES:
        mine = [row for row in rows if family_of(row.work.gpu) is family]
        sources = ", ".join(sorted({row.row.family for row in mine}))
        curves = fit_family(family, mine, known, evaluations)
        known[family.name] = replace(curves, source=f"fitted on {sources}")
    known["default"] = _default(known)
    return known


def _default(known: Mapping[str, Curves]) -> Curves:
    """For GPUs without rows: the geometric middle of the data-centre families."""
    first, second = known["ampere-datacentre"], known["hopper"]
    middle = {name: (getattr(first, name) * getattr(second, name)) ** 0.5 for name in PRIORS}
    return replace(
        first,
        name="default",
        architecture="",
        kind="",
        rows=0,
        source="no rows: the middle of ampere-datacentre and hopper",
        **middle,
    )


def write(curves: Mapping[str, Curves], path: Path) -> None:
    """Write the file."""
    lines = [_HEAD + f'date = "{date.today().isoformat()}"']
    for name, each in curves.items():
        lines.append(f"\n[family.{name}]")
        for key in PRIORS:
            lines.append(f"{key} = {getattr(each, key):.4g}")
        for key in _FIXED:
            value = getattr(each, key)
            if value:
                lines.append(f"{key} = {_toml(value)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{each}"' for each in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def main(arguments: list[str]) -> int:
    """Fit, print the errors, write the file (or another, if one is named)."""
    parser = argparse.ArgumentParser(prog="python -m vram_plan.reports.fit_speed")
    parser.add_argument("output", nargs="?", type=Path, default=EFFICIENCY_FILE)
    output = parser.parse_args(arguments).output
    rows = usable(read_timed(read_rows()).timed)
    curves = fit(rows, EVALUATIONS)
    write(curves, output)
    known = [(row, family) for row in rows if (family := family_of(row.work.gpu)) is not None]
    print(summary((row, error(row, curves[family.name])) for row, family in known), flush=True)
    print("\nfitted without the source of the row:")
    found = [
        pair
        for family in FAMILIES
        for pair in held_out(
            family, [row for row, of in known if of is family], curves, EVALUATIONS // 2
        )
    ]
    print(summary(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
