"""Stored histories judged: what is found, what it is blamed on, and what damage does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vram_plan.app.main import cli
from vram_plan.bench.measurement import Instant, Measurement
from vram_plan.bench.regression.check import Finding, check, exit_code
from vram_plan.bench.regression.pairs import judge
from vram_plan.bench.runs.store import Store

GIB = 2**30
WIGGLE = (0.0, 0.004, -0.004, 0.002, -0.002)


def document(number: int, series: str = "s", **seen: Any) -> dict[str, Any]:
    """One run: ``seconds``, ``allocated``, ``torch``, ``name``, ``gpu``."""
    allocated = seen.get("allocated", GIB)
    samples = {
        "gpu": {"name": seen.get("gpu", "H200"), "driver": "1", "memory": {"total": 4 * GIB}},
        "columns": {},
    }
    found = Measurement(
        outcome="ok",
        device="cuda",
        config={"method": "lora", "engine": "torch"},
        model={"name": seen.get("name", "small")},
        instants=(Instant(name="loss", bytes=allocated),),
        reserved_bytes=seen.get("reserved", 2 * GIB),
        step_seconds=(seen.get("seconds", 1.0) * (1 + WIGGLE[number % 5]),),
        environment={"python": "3.11", "libraries": {"torch": seen.get("torch", "2.13.0")}},
        run={"id": f"{number:04d}-{series}", "key": f"{series}{number}", "series": series},
        samples=samples,
        plan={"allocated_bytes": GIB},
    )
    return found.to_document()


def history(folder: Path, *changes: Mapping[str, Any], series: str = "s") -> Store:
    """20 calm runs, then one for each of the changes."""
    store = Store(folder)
    for number, change in enumerate([{}] * 20 + list(changes)):
        store.add(document(number, series, **change))
    return store


def found(store: Store, metric: str) -> Finding:
    (one,) = [finding for finding in check(store.index()) if finding.metric == metric]
    return one


def test_nothing_happened(tmp_path: Path) -> None:
    findings = check(history(tmp_path, {}, {}, {}).index())
    assert {one.verdict.status for one in findings} == {"ok"}
    assert exit_code(findings) == 0


def test_code_is_blamed_when_nothing_else_changed(tmp_path: Path) -> None:
    one = found(history(tmp_path, *[{"seconds": 1.1}] * 6), "step_seconds")
    assert (one.verdict.status, one.cause) == ("regression", "code")


def test_memory_counts_at_once(tmp_path: Path) -> None:
    store = history(tmp_path, *[{"allocated": int(1.05 * GIB)}] * 3)
    assert found(store, "allocated_bytes").verdict.status == "regression"
    assert found(store, "prediction_error").verdict.status == "regression"
    assert found(store, "step_seconds").verdict.status == "ok"


def test_an_upgrade_is_named_instead_of_a_commit(tmp_path: Path) -> None:
    one = found(history(tmp_path, *[{"seconds": 1.1, "torch": "2.14.0"}] * 6), "step_seconds")
    assert one.cause == "environment"
    assert one.differences == ("torch 2.13.0 → 2.14.0",)


def test_the_machine_is_blamed_when_all_move_together(tmp_path: Path) -> None:
    for series in "abc":
        store = history(tmp_path, *[{"seconds": 1.1}] * 6, series=series)
    causes = {one.cause for one in check(store.index()) if one.metric == "step_seconds"}
    assert causes == {"machine"}
    history(tmp_path, *[{}] * 6, series="d")
    causes = {one.cause for one in check(store.index()) if one.metric == "step_seconds"}
    assert causes == {"code", None}


def test_readings_near_the_capacity_do_not_count(tmp_path: Path) -> None:
    store = history(tmp_path, *[{"reserved": int(3.9 * GIB)}] * 3)
    assert found(store, "reserved_bytes").verdict.status == "censored"


def test_another_gpu_is_another_series(tmp_path: Path) -> None:
    store = history(tmp_path, *[{"seconds": 3.0, "gpu": "L4"}] * 6)
    times = [one for one in check(store.index()) if one.metric == "step_seconds"]
    assert {one.verdict.status for one in times} == {"ok", "insufficient"}


def test_too_few_runs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(document(1))
    assert exit_code(check(store.index())) == 3


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, ["bench", "check", *map(str, arguments)])


def test_every_form_of_the_answer(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>|x"
    history(tmp_path / "store", *[{"seconds": 1.1, "torch": "2.14.0", "name": name}] * 6)
    comment, junit = tmp_path / "comment.md", tmp_path / "check.xml"
    store = tmp_path / "store"
    told = run("--store", store, "--comment", comment, "--junit", junit, "--format", "json")
    assert told.exit_code == 1
    document = json.loads(told.stdout)
    assert document["findings"][0]["verdict"]["status"] == "regression"
    text = comment.read_text()
    assert text.startswith("<!-- vram-plan bench check -->")
    assert "<script>" not in text
    assert "torch 2.13.0 → 2.14.0" in text
    assert text.index("regression") < text.index("<details>")
    assert 'failures="1"' in junit.read_text()
    assert "<script>" not in junit.read_text()


def test_damage_is_told_and_the_rest_is_judged(tmp_path: Path) -> None:
    store = history(tmp_path, {}, {}, {})
    (store.runs / "half.json").write_text("{")
    (store.runs / "future.json").write_text(json.dumps(document(90) | {"schema": "m/9"}))
    (store.runs / "copy.json").write_text(json.dumps(document(22)))
    odd = document(91) | {"step_seconds": [float("nan")], "memory": {"allocated_bytes": "much"}}
    (store.runs / "odd.json").write_text(json.dumps(odd))
    (store.runs / "bare.json").write_text(json.dumps({"schema": odd["schema"], "run": {}}))
    with (store.runs / "huge.json").open("wb") as file:
        file.truncate(100 * 2**20)
    before = {path.name: path.stat().st_mtime_ns for path in store.runs.iterdir()}
    told = run("--store", tmp_path)
    assert told.exit_code == 0, told.output
    for name in ("half.json", "future.json", "huge.json", "bare.json"):
        assert f"left out: {name}" in told.stderr
    assert before == {path.name: path.stat().st_mtime_ns for path in store.runs.iterdir()}


def test_nothing_to_read(tmp_path: Path) -> None:
    assert run("--store", tmp_path / "none").exit_code == 2
    assert run("--store", tmp_path).exit_code == 2
    (tmp_path / "noise.json").write_text("[]")
    history(tmp_path / "store")
    assert run("--store", tmp_path / "store", "--noise", tmp_path / "noise.json").exit_code == 2


def test_a_noisy_machine_sets_its_own_threshold(tmp_path: Path) -> None:
    store = history(tmp_path, *[{"seconds": 1.1}] * 6)
    statuses = {
        one.verdict.status
        for one in check(store.index(), floors={"s": 0.2})
        if one.metric == "step_seconds"
    }
    assert statuses == {"ok"}


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, "ok"), (1.1, "regression")])
def test_pairs_of_stored_runs(tmp_path: Path, seconds: float, expected: str) -> None:
    store = Store(tmp_path)
    for number in range(20):
        store.add(document(number, seconds=seconds if number % 2 else 1.0))
    rows = store.index()
    batch = [([rows[i]], [rows[i + 1]]) for i in range(0, 20, 2)]
    findings = judge(batch[:5], batch[5:])
    times = [one for one in findings if one.metric == "step_seconds"]
    assert [one.verdict.status for one in times] == [expected]
    assert times[0].verdict.runs == ((10, 10) if expected == "regression" else (5, 5))
