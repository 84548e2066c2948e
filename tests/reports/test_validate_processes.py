"""Rows judged in several processes: the same as in one, and nothing is left behind."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from vram_plan.profiles.measured import ROWS_FILE, Invalid, Row, read_rows
from vram_plan.reports.validate.document import to_document
from vram_plan.reports.validate.processes import FEW, judge_rows, usable_cores
from vram_plan.reports.validate.run import collect

RUNS = ("fms-a100-main-001", "fms-a100-main-009", "megatron-ci-001", "minicpmv-001")
"""Full, LoRA, Megatron, and one that cannot be expressed."""


def many() -> Iterator[Row | Invalid]:
    """More rows than are judged in place: a few runs under many names, one malformed."""
    known = {row.id: row for row in read_rows(ROWS_FILE) if isinstance(row, Row)}
    runs = [known[name] for name in RUNS if name in known]
    for number in range(FEW + 21):
        yield replace(runs[number % len(runs)], id=f"run-{number}")
        if number == FEW:
            yield Invalid(line=number, column="gpus", reason="is negative")


@pytest.mark.parametrize("metrics", [(), ("allocated_peak_bytes",)])
def test_two_processes_say_what_one_says(metrics: tuple[str, ...]) -> None:
    alone, together = (collect(judge_rows(many(), jobs=jobs, metrics=metrics)) for jobs in (1, 2))
    assert to_document(together) == to_document(alone)
    assert together.rows == alone.rows
    assert together.skipped
    assert {one.metric for one in together.comparisons} >= set(metrics)
    assert not multiprocessing.active_children()


def test_figures_come_worked_out() -> None:
    for one in islice(judge_rows(many(), jobs=2), 12):
        assert not isinstance(one, Invalid)
        assert all("predicted" in vars(comparison) for comparison in one.comparisons)


def test_no_more_rows_are_read_than_keep_the_processes_busy() -> None:
    read = []

    def noted() -> Iterator[Row | Invalid]:
        for endless in range(10_000):
            for row in islice(many(), FEW):
                read.append(row)
                assert isinstance(row, Row)
                yield replace(row, id=f"{endless}-{row.id}")

    judged = judge_rows(noted(), jobs=2)
    next(judged)
    assert len(read) < 2 * FEW
    judged.close()


def test_few_rows_start_no_process() -> None:
    judged = judge_rows(islice(many(), FEW - 1), jobs=2)
    next(judged)
    assert not multiprocessing.active_children()
    judged.close()


def test_processes_end_when_nobody_asks_for_more() -> None:
    judged = judge_rows(many(), jobs=2)
    next(judged)
    assert len(multiprocessing.active_children()) == 2
    judged.close()
    assert not multiprocessing.active_children()


def test_a_process_that_is_ended_is_said_with_its_rows() -> None:
    judged = judge_rows(many(), jobs=2)
    next(judged)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    with pytest.raises(ValueError, match=r"process was ended .* rows run-\d+ .*--jobs 1"):
        list(judged)
    assert not multiprocessing.active_children()


def test_a_mistake_in_a_process_is_told_with_its_place() -> None:
    no_name: Any = 5

    def wrong() -> Iterator[Row | Invalid]:
        for row in many():
            broken = isinstance(row, Row) and row.id == "run-41"
            yield replace(row, model=no_name) if broken else row

    with pytest.raises(RuntimeError, match=r"row run-41:(.|\n)*Traceback(.|\n)*Error"):
        list(judge_rows(wrong(), jobs=2))
    assert not multiprocessing.active_children()


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import vram_plan.reports.validate.run as run
from vram_plan.app.main import main
def collect(judged):
    for one in judged:
        os.killpg(0, signal.SIGINT)  # as a terminal does: to all of them
run.collect = collect
main(["validate", "--jobs", "2"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_an_interrupt_ends_all_and_says_so_in_one_line(tmp_path: Path) -> None:
    """The pipe closes when the last process that holds it has ended."""
    stopped = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
        cwd=tmp_path,
    )
    assert stopped.returncode == 130
    assert stopped.stderr.strip() == "Error: stopped"
    assert not stopped.stdout


def test_cores_are_counted() -> None:
    assert usable_cores() >= 1
