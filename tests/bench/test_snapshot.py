"""The snapshot is one that PyTorch's own tools read."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.cuda import _memory_viz as torchs_own_viewer

from vram_plan.bench.allocator import AllocatorSettings, replay_trace
from vram_plan.bench.snapshot import snapshot, write_snapshot
from vram_plan.bench.trace import Trace, TraceConfig, trace_step

_memory_viz: Any = torchs_own_viewer  # torch leaves it untyped
EXPANDABLE = AllocatorSettings(expandable_segments=True)
SETTINGS = [AllocatorSettings(), EXPANDABLE]
IDS = ["default", "expandable"]


@pytest.fixture(scope="module")
def trace() -> Trace:
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
    }
    return trace_step(TraceConfig(config=config, batch=2, seq=256, history=True))


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_torch_reads_it(trace: Trace, settings: AllocatorSettings) -> None:
    data = snapshot(trace, settings)
    as_text = str  # no flamegraph script: it would be fetched from the net
    assert "active_allocated" in _memory_viz.segments(data, format_flamegraph=as_text)
    assert "parameter [1000×256 bf16]" in _memory_viz.memory(data, format_flamegraph=as_text)
    assert "total_reserved" in _memory_viz.segsum(data)
    assert "TOTAL MEM" in _memory_viz.trace(data)
    for plot in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        assert "snapshot.pickle" in plot(data)
    kept = _memory_viz.filter_alloc_free_pairs(snapshot(trace, settings))
    assert all(e["action"] != "free_completed" for e in kept["device_traces"][0])


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_segments_hold_what_lives_at_the_end(trace: Trace, settings: AllocatorSettings) -> None:
    data = snapshot(trace, settings)
    result = replay_trace(trace, settings)
    assert sum(s["total_size"] for s in data["segments"]) == result.stats.reserved
    assert sum(s["allocated_size"] for s in data["segments"]) == result.stats.allocated
    live = trace.alive_after(len(trace.events))
    assert sum(s["requested_size"] for s in data["segments"]) == sum(b.bytes for b in live)
    addresses = [b["address"] for s in data["segments"] for b in s["blocks"]]
    assert addresses == sorted(set(addresses))


def test_actions_reach_the_same_end(trace: Trace) -> None:
    data = snapshot(trace)
    live: dict[int, int] = {}
    reserved = peak = 0
    for entry in data["device_traces"][0]:
        assert entry["frames"], entry
        if entry["action"] == "alloc":
            assert entry["addr"] not in live
            live[entry["addr"]] = entry["size"]
        elif entry["action"] == "free_completed":
            assert live.pop(entry["addr"]) == entry["size"]
        elif entry["action"] == "segment_alloc":
            reserved += entry["size"]
        peak = max(peak, sum(live.values()))
    assert sum(live.values()) == sum(s["requested_size"] for s in data["segments"])
    assert peak >= trace.peak_bytes
    assert reserved == sum(s["total_size"] for s in data["segments"])


def test_a_full_device_ends_the_snapshot(trace: Trace) -> None:
    data = snapshot(trace, limit_bytes=trace.peak_bytes // 2)
    last = data["device_traces"][0][-1]
    assert last["action"] == "oom"
    assert "device_free" in last
    assert "OutOfMemoryError" in _memory_viz.trace(data)


def test_phases_are_annotations(trace: Trace) -> None:
    found = snapshot(trace)["external_annotations"]
    names = [entry["name"] for entry in found if entry["stage"] == "START"]
    assert names.count("backward") == 2
    assert {"forward", "loss", "backward", "clip", "step", "zero_grad"} <= set(names)


def test_a_trace_without_history_is_refused(trace: Trace) -> None:
    bare = Trace(
        start_bytes=trace.start_bytes,
        start_blocks=trace.start_blocks,
        events=trace.events,
        marks=trace.marks,
    )
    with pytest.raises(ValueError, match="history=True"):
        snapshot(bare)


def test_torchs_command_line(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pickle"
    write_snapshot(path, trace)
    with path.open("rb") as file:
        assert pickle.load(file)["device_traces"]
    page = tmp_path / "page.html"
    command = [sys.executable, _memory_viz.__file__, "trace_plot", str(path), "-o", str(page)]
    subprocess.run(command, check=True, timeout=60)
    assert page.stat().st_size > 10_000


def test_the_page_opens_in_a_browser(trace: Trace, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    page = tmp_path / "page.html"
    page.write_text(_memory_viz.trace_plot(snapshot(trace)))
    command = [browser, "--headless", "--no-sandbox", "--dump-dom", page.as_uri()]
    shown: Any = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert json.dumps("snapshot.pickle") in shown.stdout
