"""The closed form against the dry run, over a sample of configurations.

``VRAM_PLAN_PROOF_SEED`` takes another sample, ``VRAM_PLAN_PROOF_COUNT`` another size and
``VRAM_PLAN_PROOF_JOBS`` more processes.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vram_plan.bench.proof.case import Result
from vram_plan.bench.proof.runner import read_results, sweep, write_results
from vram_plan.bench.proof.sample import METHODS, PRECISIONS, Slot, slots
from vram_plan.bench.proof.setups import SETUPS
from vram_plan.bench.proof.shapes import GROUPS
from vram_plan.bench.proof.stored import replanned

pytest.importorskip("torch")
pytest.importorskip("peft")

SEED = int(os.environ.get("VRAM_PLAN_PROOF_SEED", "1"))
COUNT = int(os.environ.get("VRAM_PLAN_PROOF_COUNT", "400"))
JOBS = int(os.environ.get("VRAM_PLAN_PROOF_JOBS", str(os.cpu_count() or 1)))
MEDIAN, LARGEST, COMPONENT = 0.005, 0.02, 0.02
FAILING = 0.02
"""Share of places; `docs/proof.md` names those of the larger sweep that are beyond the bounds."""


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return sweep(slots(SEED, COUNT), jobs=JOBS)


def ran(results: list[Result]) -> list[Result]:
    return [result for result in results if result.outcome == "ok"]


def shown(result: Result) -> str:
    error = f"{100 * result.error:+.3f} % (component {100 * result.component_error:.2f} %)"
    return f"{error} {result.model} {result.options}"


def test_little_fails(results: list[Result]) -> None:
    failed = [f"{r.number}: {r.message}" for r in results if r.outcome == "error"]
    assert len(failed) <= FAILING * len(results), failed


def test_median(results: list[Result]) -> None:
    assert statistics.median(abs(result.error) for result in ran(results)) <= MEDIAN


def test_peaks(results: list[Result]) -> None:
    wide = [shown(result) for result in ran(results) if abs(result.error) > LARGEST]
    assert not wide


def test_components(results: list[Result]) -> None:
    wide = [shown(result) for result in ran(results) if result.component_error > COMPONENT]
    assert not wide


def test_quotas(results: list[Result]) -> None:
    """Cells that nothing refuses have what they were given."""
    refused = [result for result in results if result.outcome == "refused"]
    assert all(len(result.refusals) > 1 for result in refused)
    assert len(ran(results)) >= 0.8 * len(results)


def test_a_plan_made_anew_finds_its_trace(results: list[Result], tmp_path: Path) -> None:
    """Written, read and planned again, every place that ran is the same."""
    path = tmp_path / "proof.jsonl"
    write_results(path, results)
    again = list(replanned(read_results(path, slots(SEED, COUNT))))
    assert [plain(result) for result in again] == [plain(result) for result in ran(results)]


def test_another_step_is_traced_again(results: list[Result]) -> None:
    """A trace of another step is not held against the plan."""
    result = ran(results)[0]
    longer = result.options | {"seq_len": result.options["seq_len"] + 8}
    assert list(replanned([replace(result, options=longer)])) == []


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("count", [400, 3000])
def test_every_sample_is_level(seed: int, count: int) -> None:
    """Families, methods and precisions come equally often, give or take one of each cell."""
    sample = slots(seed, count)
    assert len(sample) == count
    level(sample, "family", len(GROUPS))
    level(sample, "method", len(METHODS))
    level(sample, "precision", len(PRECISIONS))
    cells = Counter(slot.stratum for slot in sample)
    assert max(cells.values()) - min(cells.values()) <= 1
    setups = Counter((slot.sharding, slot.size) for slot in sample)
    assert setups == {s: count // len(SETUPS) * n for s, n in Counter(SETUPS).items()}


def test_a_larger_sample_begins_with_the_smaller_one() -> None:
    assert slots(1, 3000)[:400] == slots(1, 400)


def plain(result: Result) -> str:
    return json.dumps(result.as_row(), sort_keys=True)


def level(sample: list[Slot], axis: str, kinds: int) -> None:
    counts = Counter(getattr(slot, axis) for slot in sample)
    assert len(counts) == kinds
    assert max(counts.values()) - min(counts.values()) <= 2
