"""The project's own comparison as a page: plan and peers against the measured rows.

    python -m vram_plan.reports.page.published docs

writes ``docs/accuracy.html`` and ``docs/accuracy.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vram_plan.profiles.calibration import Calibration, load_calibration
from vram_plan.profiles.measured import read_rows
from vram_plan.reports.outcome_folds import VERDICTS
from vram_plan.reports.page import figures
from vram_plan.reports.page.html import page
from vram_plan.reports.page.markdown import markdown
from vram_plan.reports.page.sections import Section, Table
from vram_plan.reports.scoreboard import TENSORS
from vram_plan.reports.scoreboard_text import as_grid, boards, percent
from vram_plan.reports.validate.judge import Comparison
from vram_plan.reports.validate.run import Validation, validate
from vram_plan.reports.validate.summary import spread, target
from vram_plan.reports.validate.view import Grid

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TITLE", "answer", "published_sections", "rows_frame"]

TITLE = "How right is vram-plan?"
_STRATA = ("class", "source", "method", "engine", "checkpointing")


def rows_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Allocated peaks: columns of ``frames.runs_frame`` that figures need, and the strata."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "label": f"{one.row.id}: {one.row.model}",
                "outcome": "ok",
                "capacity_bytes": None,
                "predicted_bytes": one.predicted,
                "measured_bytes": one.measured,
                "error": one.error,
                "class": target(one) or "other",
                "source": one.row.group.partition("/")[0],
                "method": one.plan.config.method,
                "engine": one.plan.config.engine,
                "checkpointing": one.plan.config.checkpointing,
            }
            for one in comparisons
        ]
    )


def published_sections(found: Validation, calibration: Calibration) -> list[Section]:
    """Peaks, their errors by stratum, verdicts, and other estimators on the same rows."""
    allocated = [
        one for one in found.comparisons if one.metric == TENSORS and one.row.quality in ("A", "B")
    ]
    runs = rows_frame(allocated)
    strata = [_stratum(runs, name) for name in _STRATA]
    main = boards([one for one in found.comparisons if one.metric == TENSORS])[0]
    peers = "Other estimators on the same rows, each from its own formula"
    return [
        Section(
            title="Published peaks of PyTorch's allocator",
            text="Runs of quality A and B, none of them measured by this project.",
            figure=figures.predicted_measured(runs),
        ),
        *strata,
        Section(title="Verdicts", text=_device(calibration), table=_outcomes(calibration)),
        Section(title=peers, table=_table(as_grid(main))),
    ]


def _stratum(runs: pd.DataFrame, name: str) -> Section:
    rows = []
    for value, some in runs.groupby(name):
        errors = spread(list(some["error"]))
        figures_ = (percent(errors.median), percent(errors.p95), percent(errors.max))
        rows.append((str(value), str(errors.n), *figures_))
    return Section(
        title=f"Error by {name}",
        figure=figures.errors_by(runs, name),
        table=Table(head=(name, "n", "median", "95 % within", "worst"), rows=tuple(rows)),
        folded=False,
    )


def _device(calibration: Calibration) -> str:
    return (
        f"What the device reports: {percent(calibration.coverage)} of {calibration.rows} readings "
        "lie inside the plan's range, in groups of rows that the fit had not seen; the middle is "
        f"off by {percent(calibration.median_error)} in the median."
    )


def _outcomes(calibration: Calibration) -> Table:
    rows = [
        (outcome, *(str(verdicts[verdict]) for verdict in VERDICTS))
        for outcome, verdicts in calibration.outcomes.items()
    ]
    return Table(head=("how the run ended", *VERDICTS), rows=tuple(rows))


def _table(grid: Grid) -> Table:
    rows = tuple(tuple(str(cell) for cell in row) for row in grid.rows)
    return Table(head=tuple(grid.heads), rows=rows)


def answer(found: Validation) -> str:
    """The page's first sentence."""
    judged = [
        one.error
        for one in found.comparisons
        if one.metric == TENSORS and target(one) in ("one GPU", "several GPUs")
    ]
    errors = spread(judged)
    return (
        f"{errors.n} published peaks of other people's runs are met to {percent(errors.median)} in "
        f"the median and {percent(errors.p95)} in 95 % of them."
    )


def main(arguments: list[str]) -> int:
    """Write both files into the folder that is named."""
    if len(arguments) != 1:
        print("usage: python -m vram_plan.reports.page.published FOLDER", file=sys.stderr)
        return 2
    found, calibration = validate(read_rows()), load_calibration()
    sections = published_sections(found, calibration)
    for name, write in (("accuracy.html", page), ("accuracy.md", markdown)):
        text = write(TITLE, answer(found), sections)
        Path(arguments[0], name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
