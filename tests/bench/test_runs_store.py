"""Stored runs survive what machines do to files."""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vram_plan.bench.measurement import Instant, Measurement
from vram_plan.bench.runs.samples import ENDING
from vram_plan.bench.runs.store import Damaged, Store, new_id


def document(key: str = "k", **changes: Any) -> dict[str, Any]:
    run = {"id": new_id(), "key": key, "series": "s", "created_utc": "2026-01-01T00:00:00Z"}
    seen = Measurement(
        outcome="ok",
        device="cpu",
        config={"method": "lora", "engine": "torch"},
        model={"name": "small"},
        instants=(Instant(name="loss", bytes=7),),
        step_seconds=(0.3, 0.1, 0.2),
        run=run | {"job": {}},
    )
    return seen.to_document() | changes


def test_a_run_is_written_once(tmp_path: Path) -> None:
    store, found = Store(tmp_path), document()
    store.add(found)
    with pytest.raises(ValueError, match="written once"):
        store.add(found)
    assert store.read(f"{found['run']['id']}.json") == found
    assert not [path for path in store.runs.iterdir() if path.suffix == ".half"]


def test_the_index_follows_the_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.add(document("a"))
    store.add(document("b"))
    rows = store.index()
    assert [row["key"] for row in rows] == ["a", "b"] or [row["key"] for row in rows] == ["b", "a"]
    assert rows[0]["seconds"] == 0.2
    path.unlink()
    assert store.finished() == {"b": "ok"}
    (tmp_path / "index.sqlite").write_bytes(b"no database")
    assert store.finished() == {"b": "ok"}


def test_damaged_files_are_told_and_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(document("a"))
    cases = {
        "broken.json": "{",
        "future.json": json.dumps(document(schema="vram-plan/measurement/9")),
        "list.json": "[]",
    }
    for name, text in cases.items():
        (store.runs / name).write_text(text)
    told = {found.file for found in store.documents() if isinstance(found, Damaged)}
    assert told == set(cases)
    assert list(store.finished()) == ["a"]
    assert {path.name for path in store.runs.iterdir()} >= set(cases)


def test_two_sweeps_share_a_store(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fill_store.py")
    both = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path), key, "20"]) for key in "ab"
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert len(Store(tmp_path).finished()) == 40


def test_an_index_of_another_version_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(document("a"))
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        connection.execute("CREATE TABLE runs (file TEXT)")
    connection.close()
    assert store.finished() == {"a": "ok"}


def test_a_folder_that_cannot_be_written_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another folder"):
        Store(tmp_path / "file").add(document())


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder whose disk need not be waited for, where there is one: processes die, not disks."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_nothing_is_lost_or_counted_twice_when_writers_are_killed(in_memory: Path) -> None:
    """Two hundred random points of commits, by lines of code: no clock decides."""
    script = Path(__file__).with_name("kill_points.py")
    done = subprocess.run(
        [sys.executable, str(script), "random", str(in_memory), "200"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    said = json.loads(done.stdout)
    store = Store(in_memory)
    found = list(store.documents())
    assert not [one for one in found if isinstance(one, Damaged)]
    kept = [one["run"]["id"] for one in found if not isinstance(one, Damaged)]
    assert set(said) <= set(kept)
    assert len(kept) == len(set(kept))
    assert len(kept) - len(said) <= 200  # in the store, killed before it could be said
    assert set(store.finished()) == set(kept)
    assert len(said) >= 50


def test_nothing_is_lost_at_any_point_of_the_commit(in_memory: Path) -> None:
    """A kill at every line between the first byte and the index; each store is read and resumed."""
    script = Path(__file__).with_name("kill_points.py")
    done = subprocess.run(
        [sys.executable, str(script), "every", str(in_memory)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    said = json.loads(done.stdout)
    assert len(said) > 50
    for found in said:
        assert found["ids"] in (["first"], ["first", "second"])
        assert found["finished"] == found["ids"]
        assert found["damaged"] == 0
        assert found["sampled"]
        assert found["again"] == ["first", "second"]
    counts = [len(found["ids"]) for found in said]
    assert counts == sorted(counts)  # the file comes at one point, and stays
    assert counts[0] == 1
    assert counts[-1] == 2


def sampled(store: Store) -> tuple[dict[str, Any], Path]:
    """A stored run with samples, and the file that they are in."""
    seen = {"gpu": None, "columns": {"seconds": [0.1, 0.2], "host_bytes": [5, None]}}
    found = document(samples=seen)
    path = store.add(found)
    return found, path.with_name(path.stem + ENDING)


def test_samples_are_compressed_beside_the_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    found, beside = sampled(store)
    name = f"{found['run']['id']}.json"
    assert "columns" not in (store.runs / name).read_text(encoding="utf-8")
    assert store.read(name) == found
    assert store.read(name, sampled=False)["samples"] == {"gpu": None}
    assert next(iter(store.documents())) == found
    beside.write_bytes(beside.read_bytes()[:-9])
    assert store.read(name)["samples"] == {"gpu": None, "columns": {}}
    beside.unlink()
    assert store.read(name)["samples"]["columns"] == {}
    assert len(store.finished()) == 1


def test_runs_of_an_earlier_version_hold_their_samples(tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = document(samples={"columns": {"seconds": [0.1]}})
    store.runs.mkdir(parents=True)
    (store.runs / "old.json").write_text(json.dumps(found))
    assert store.read("old.json") == found


def test_samples_whose_run_never_came_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _, kept = sampled(store)
    lost = store.runs / f"lost{ENDING}"
    lost.write_bytes(b"")
    os.utime(lost, (0, 0))
    os.utime(kept, (0, 0))
    store.add(document())
    assert kept.exists()
    assert not lost.exists()
