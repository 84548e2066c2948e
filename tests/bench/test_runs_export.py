"""Stored runs become rows that validate reads."""

import io
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.export import row_of, write_rows
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import Ended
from vram_plan.bench.runs.record import measurement_of
from vram_plan.profiles.measured import Invalid, read_rows


def document(**seen: Any) -> dict[str, Any]:
    job = Job(model="qwen2.5-0.5b", layers=4, options={"method": "lora", "seq_len": 64})
    result = {"instants": {"loss": 123_456}, "step_seconds": [0.3, 0.1, 0.2]} | seen
    ended = Ended(result=result, failure=None, stage="save", seconds=1.0, log="")
    return measurement_of(job, job.predict(), ended).to_document()


def test_a_row_has_what_is_known(tmp_path: Path) -> None:
    row = row_of(document())
    assert row["allocated_peak_bytes"] == 123_456
    assert row["step_seconds"] == 0.2
    assert row["num_layers"] == 4
    assert row["tied_embeddings"] is True
    assert row["lora_rank"] == 16
    assert "zero_stage" not in row
    path = tmp_path / "rows.csv"
    with path.open("w") as file:
        assert write_rows([document(), document()], file) == 2
    rows = list(read_rows(str(path)))
    assert not [one for one in rows if isinstance(one, Invalid)], rows
    assert len(rows) == 2


def test_nothing_personal_is_in_a_row() -> None:
    found = document()
    found["model"]["name"] = "/home/somebody/secret/config.json"
    text = io.StringIO()
    write_rows([found], text)
    assert "somebody" not in text.getvalue()


def test_a_virtual_rank_is_told_in_its_row() -> None:
    job = Job(model="gpt2", layers=2, options={"zero": 3, "seq_len": 8}, ranks="virtual:8")
    result = {"instants": {"loss": 5}}
    ended = Ended(result=result, failure=None, stage="save", seconds=1.0, log="")
    row = row_of(measurement_of(job, job.predict(), ended).to_document())
    assert row["gpus"] == 8
    assert "rank 0 of 8" in row["notes"]
    assert "step_seconds" not in row
