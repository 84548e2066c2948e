"""README cannot drift: its session is what the command prints, its example runs."""

import re
from pathlib import Path

import pytest

from vram_plan.app.main import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def test_session_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.search(r"```\n\$ vram-plan ([^\n]+)\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    with pytest.raises(SystemExit) as stop:
        main(shown[1].split())
    assert stop.value.code == 0
    assert _lines(capsys.readouterr().out) == _lines(shown[2])


def test_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    exec(compile(example[1], "README.md", "exec"), {})
    assert "GiB at" in capsys.readouterr().out


def test_every_command_shown_works(capsys: pytest.CaptureFixture[str]) -> None:
    section = README.split("## More to ask")[1].split("```")[1]
    commands = section.replace("\\\n", " ").strip().splitlines()
    assert len(commands) >= 5
    for command in commands:
        words = command.partition("#")[0].split()[1:]
        if "./my-model/config.json" in words:
            continue
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code in {0, 1}, command
        assert not capsys.readouterr().err
