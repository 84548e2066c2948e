"""README's accuracy section: the errors on the project's own measured rows, and the peers'.

``python -m vram_plan.reports.accuracy README.md`` writes it between the markers; a test holds that
what stands there is what the rows say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vram_plan.profiles.calibration import Calibration, load_calibration
from vram_plan.profiles.measured import read_rows
from vram_plan.reports.outcome_folds import VERDICTS
from vram_plan.reports.scoreboard import OURS, TENSORS, Standing
from vram_plan.reports.scoreboard_text import Board, as_grid, boards, percent
from vram_plan.reports.validate.judge import Comparison
from vram_plan.reports.validate.run import Validation, validate
from vram_plan.reports.validate.summary import Spread, spread, target
from vram_plan.reports.validate.view import Grid

__all__ = ["BEGIN", "END", "accuracy_section", "put"]

BEGIN, END = "<!-- accuracy -->", "<!-- /accuracy -->"
_CLASSES = ("one GPU", "several GPUs", "Megatron, hidden 2,048 up", "Megatron, toy")
_FEWEST = 10
"""A peer that can express fewer figures is not named as the nearest."""


def accuracy_section(validation: Validation, calibration: Calibration) -> str:
    """The section's text, markers not included.

    Args:
        validation: of the project's rows; only its allocated peaks are looked at.
        calibration: the fitted constants, which carry their error on rows they did not see.
    """
    allocated = [one for one in validation.comparisons if one.metric == TENSORS]
    main = boards(allocated)[0]
    ours = Grid(
        title="errors of the plan",
        heads=("what was read", "n", "median error", "95 % within", "worst"),
        rows=tuple(_our_rows(allocated)),
    )
    outcomes = Grid(
        title="how runs ended against the verdict",
        heads=("how the run ended", *VERDICTS),
        rows=tuple(_outcome_rows(calibration)),
    )
    parts = (
        _sentence(validation, main),
        _table(ours),
        _introduction(main),
        _table(as_grid(main)),
        _device(calibration),
        _table(outcomes),
    )
    return "\n\n".join(parts)


def _sentence(validation: Validation, board: Board) -> str:
    allocated = [one for one in validation.comparisons if one.metric == TENSORS]
    judged = _of_class(allocated, "one GPU")
    text = (
        f"`vram-plan validate` predicts {validation.share:.0%} of the published runs of quality A "
        "and B that have a memory figure, none of them measured by this project, without a "
        "constant per row."
    ).replace("%", " %", 1)
    if judged is None:
        return text
    text += (
        f" On one GPU the peak of PyTorch's allocator is met to {percent(judged.median)} in the "
        f"median and {percent(judged.p95)} in 95 % of {judged.n} runs."
    )
    nearest = _nearest(board)
    if nearest is None or nearest.errors is None or nearest.ours is None:
        return text
    return text + (
        f" The nearest other estimator, {nearest.name}, is off by {percent(nearest.errors.median)} "
        f"in the median of the {nearest.expressed} peaks it can express, where the plan is off by "
        f"{percent(nearest.ours.median)}."
    )


def _nearest(board: Board) -> Standing | None:
    others = [one for one in board.standings if one.name != OURS and one.expressed >= _FEWEST]
    return min(others, key=lambda one: one.errors.median if one.errors else 0.0, default=None)


def _our_rows(allocated: Sequence[Comparison]) -> Iterator[tuple[str, ...]]:
    for kind in _CLASSES:
        found = _of_class(allocated, kind)
        if found is not None:
            figures = (percent(found.median), percent(found.p95), percent(found.max))
            yield (f"allocated, {kind}", str(found.n), *figures)


def _of_class(allocated: Sequence[Comparison], kind: str) -> Spread | None:
    errors = [one.error for one in allocated if target(one) == kind]
    return spread(errors) if errors else None


def _device(calibration: Calibration) -> str:
    return (
        "What the device itself reports holds the CUDA context, communication buffers and the "
        "allocator's cache. Where these cannot be derived they are fitted "
        "(`python -m vram_plan.reports.calibrate`), and the plan gives a range: it holds "
        f"{percent(calibration.coverage)} of {calibration.rows} readings in groups of rows that "
        f"the fit had not seen, and its middle is off by {percent(calibration.median_error)} in "
        "the median there. Runs with a published outcome, each judged by a slack that its own "
        "group had no part in (failed: cause unrecorded):"
    )


def _outcome_rows(calibration: Calibration) -> Iterator[tuple[str, ...]]:
    for outcome, verdicts in calibration.outcomes.items():
        yield (outcome, *(str(verdicts[verdict]) for verdict in VERDICTS))


def _introduction(board: Board) -> str:
    return (
        f"The same {board.standings[0].asked} {board.title} asked of published estimators, each "
        "from its own formula (`reports/vram_plan/reports/peers/`, checked against what the tool "
        "prints) with the settings nearest to the run; the last column is the plan on the figures "
        "that the estimator can express:"
    )


def _table(grid: Grid) -> str:
    rule = "|---" * grid.left + "|---:" * (len(grid.heads) - grid.left) + "|"
    heads, *rows = (f"| {' | '.join(row)} |" for row in (grid.heads, *grid.rows))
    return "\n".join([heads, rule, *rows])


def put(text: str, section: str) -> str:
    """A text with the section between its markers.

    Raises:
        ValueError: when the markers are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README needs the lines {BEGIN} and {END} around its accuracy section")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the section into the file named, ``README.md`` when none is."""
    parser = argparse.ArgumentParser(prog="python -m vram_plan.reports.accuracy")
    parser.add_argument("file", nargs="?", type=Path, default=Path("README.md"))
    path: Path = parser.parse_args(arguments).file
    section = accuracy_section(validate(read_rows()), load_calibration())
    text = path.read_text(encoding="utf-8")
    path.write_text(put(text, section), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
