"""Errors of predicted step times on the measured rows: ``python -m vram_plan.reports.speed``."""

from __future__ import annotations

from collections import Counter

from vram_plan.profiles.efficiency import curves_of
from vram_plan.profiles.measured import read_rows
from vram_plan.reports.speed.errors import summary
from vram_plan.reports.speed.fit import error
from vram_plan.reports.speed.rows import read_timed


def main() -> None:
    """Print the table, and what could not be predicted."""
    found = read_timed(read_rows())
    print(summary((row, error(row, curves_of(row.work.gpu))) for row in found.timed))
    print("\nnot predicted:")
    for reason, count in Counter(found.skipped.values()).most_common():
        print(f"{count:>5} {reason}")


if __name__ == "__main__":
    main()
