"""The doctor says what runs here, whatever is installed."""

import json

import pytest

from vram_plan.app.main import main
from vram_plan.bench.environment import version_of


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *arguments])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_every_command_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(["--format", "json"], capsys))
    works = {ability["command"]: ability for ability in found["abilities"]}
    assert works["plan, models, gpus, validate"]["works"]
    for ability in works.values():
        assert ability["works"] or (ability["missing"] and ability["mend"])
    assert found["gpus"] or found["gpu_reason"]


def test_what_is_missing_comes_with_the_command_that_mends_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = version_of
    monkeypatch.setattr(
        "vram_plan.bench.doctor.version_of", lambda name: None if name == "peft" else known(name)
    )
    out = run([], capsys)
    assert "missing: peft" in out
    assert "pip install 'vram-plan[bench]'" in out
    assert max(map(len, out.splitlines())) <= 80
