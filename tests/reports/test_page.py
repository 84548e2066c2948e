"""What a page says, what it keeps out, and how large it is."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from vram_plan.app.main import cli
from vram_plan.bench.runs.store import Store
from vram_plan.estimator import plan
from vram_plan.reports.page.comparison import compared, comparison_sections, verdict
from vram_plan.reports.page.frames import command_of, components_frame, names_of, runs_frame
from vram_plan.reports.page.html import page
from vram_plan.reports.page.markdown import markdown
from vram_plan.reports.page.sections import sections, sentence
from vram_plan.reports.page.timeline import downsampled, timeline_frame

Run = Callable[..., dict[str, Any]]
Several = Callable[..., list[dict[str, Any]]]
GIB = 2**30
EVIL = "<script>alert('x')</script>|</script><img src=http://evil.example/x>"


def test_the_answer_comes_first(run: Run, several: Several) -> None:
    documents = [run(0, allocated=100 * GIB, predicted=101 * GIB), run(1, allocated=GIB)]
    assert "0.50 % in the median and by 1.00 % at most (2 compared)" in sentence(documents)
    assert "1 oom" in sentence(several())
    assert sentence([]).startswith("0 runs")


def test_frames_hold_bytes_and_leave_out_what_is_not_known(several: Several) -> None:
    frame = runs_frame(several())
    assert frame["error"].isna().sum() == 1
    assert frame["seconds"].isna().sum() == 1
    assert set(frame["gpu"]) == {"NVIDIA H200"}
    first = frame.iloc[0]
    assert first["measured_bytes"] == GIB
    assert first["tokens_per_second"] == 512
    parts = components_frame(several()[:1])
    assert parts[parts["side"] == "predicted"]["bytes"].sum() == GIB


def test_names_say_only_what_differs(run: Run) -> None:
    common, names = names_of([run(0, method="full"), run(1, method="lora")])
    assert names == ["full", "lora"]
    assert common == "small · 512 tokens"


def test_a_run_can_be_made_again(run: Run) -> None:
    assert command_of(run(0)) == "vram-plan bench run --model small --device cuda --seq-len 512"
    virtual = run(0)
    virtual["run"]["job"]["ranks"] = "virtual:8"
    assert "--ranks virtual:8" in command_of(virtual)
    assert "'a b; rm'" in command_of(run(0, name="a b; rm"))


def test_every_section_is_there(several: Several) -> None:
    titles = [section.title for section in sections(several())]
    assert titles == [
        "Predicted and measured memory",
        "What fills the memory at the peak",
        "Memory over time",
        "Where a step's time goes",
        "Throughput and memory",
        "Error by method",
        "Make it again",
    ]


def test_what_came_from_outside_is_escaped(run: Run) -> None:
    documents = [run(0, name=EVIL, method="full"), run(1, name=EVIL)]
    html = page(EVIL, EVIL, sections(documents))
    assert "<script>alert" not in html
    assert "<img" not in html
    text = markdown(EVIL, sentence(documents), sections(documents))
    assert "<script>" not in text
    assert "<img" not in text


def test_the_page_is_self_contained_and_small(several: Several) -> None:
    html = page("t", "a", sections(several(500)))
    assert len(html.encode()) <= 6_000_000
    assert html.count("plotly.js v") == 1
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', outside)
    assert "default-src 'none'" in html


@given(
    st.lists(st.floats(0, 1e12), min_size=1, max_size=400), st.integers(min_value=2, max_value=60)
)
def test_thinning_keeps_the_peak(values: list[float], most: int) -> None:
    points = list(enumerate(values))
    kept = downsampled(points, most)
    assert max(value for _, value in kept) == max(values)
    assert min(value for _, value in kept) == min(values)
    assert list(kept) == sorted(kept)
    assert len(kept) <= max(most, 2)


def test_a_timeline_without_samples_is_empty(run: Run) -> None:
    document = run(0)
    assert timeline_frame(document)["bytes"].max() == 3 * GIB
    document["samples"] = None
    assert len(timeline_frame(document)) == 0


def test_sides_differ_in_the_axis_alone(several: Several) -> None:
    groups = compared(several(), "method")
    assert {side.value for sides in groups.values() for side in sides} == {"full", "lora"}
    with pytest.raises(ValueError, match="--axis zero: no two"):
        compared(several(), "zero")


def test_ties_are_called_ties() -> None:
    assert verdict([1.0], [1.02], limit=0.03) == "tie (+2.0%)"
    assert verdict([1.0, 1.2], [1.1, 1.3], limit=0.03).startswith("tie")
    assert verdict([1.0, 1.01], [1.1, 1.11], limit=0.03) == "+10.0%"
    assert verdict([], [1.0], limit=0.03) == "–"


def test_plans_are_compared_before_any_run_exists() -> None:
    from vram_plan.app.json_format import to_document

    documents = [to_document(plan("gpt2", seq_len=64, method=one)) for one in ("full", "lora")]
    (section,) = comparison_sections(documents, "method")
    assert section.table is not None
    assert [row[0] for row in section.table.rows] == ["full", "lora"]
    assert section.table.rows[1][2].startswith("-")


def test_the_command_writes_pages_and_refuses_other_files(tmp_path: Path, several: Several) -> None:
    store = Store(tmp_path / "store")
    for document in several(4):
        store.add(document)
    told = report("--store", store.folder, "--output", tmp_path / "r.html")
    assert told.exit_code == 0, told.output
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    told = report(
        "compare", "--axis", "method", "--store", store.folder, "--output", tmp_path / "r.md"
    )
    assert told.exit_code == 0, told.output
    (tmp_path / "odd.json").write_text(json.dumps({"schema": "other/1"}))
    told = report(tmp_path / "odd.json", "--output", tmp_path / "o.html")
    assert told.exit_code == 2
    assert "schema 'other/1'" in told.stderr
    assert report("--output", tmp_path / "o.html").exit_code == 2


def report(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])
