"""A suite beside its committed expectation: what grew, where, and which library did it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vram_plan.app.main import cli

SUITE = """
[run]
device = "cuda"

[[cell]]
model = "gpt2"
layers = 1
seq_len = 64
attention = "sdpa"
method = ["full", "lora"]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE)
    return path


def expect(suite: Path, *arguments: str, level: str = "plan") -> Any:
    given = [str(suite), "--expected", str(suite.with_name("e.json")), "--level", level]
    return CliRunner().invoke(cli, ["bench", "expect", *given, *arguments])


def change(suite: Path, factor: float) -> None:
    """Make the expectation one of another library, by ``factor`` of the peak."""
    path = suite.with_name("e.json")
    found = json.loads(path.read_text())
    found["environment"]["transformers"] = "5.22.0"
    for case in found["cases"].values():
        instants = case["plan"]["instants"]
        case["plan"]["instants"] = {k: int(v * factor) for k, v in instants.items()}
        case["plan"]["components"]["activations"] = 0
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("level", ["plan", "dry-run"])
def test_the_same_libraries_need_the_same(suite: Path, level: str) -> None:
    assert expect(suite, "--update", level=level).exit_code == 0
    told = expect(suite, level=level)
    assert told.exit_code == 0, told.output
    assert told.output.count("+0.00 GiB at the peak") == 2


def test_growth_is_named_with_the_library_and_the_tensors(suite: Path, tmp_path: Path) -> None:
    expect(suite, "--update")
    change(suite, 0.5)
    comment = tmp_path / "comment.md"
    told = expect(suite, "--comment", str(comment))
    assert told.exit_code == 1
    assert "transformers 5.22.0 → 5.23.0: activations +" in told.output
    assert told.output.count("regression") == 2
    assert "transformers 5.22.0" in comment.read_text()


def test_less_is_no_regression(suite: Path) -> None:
    expect(suite, "--update")
    change(suite, 2.0)
    told = expect(suite)
    assert told.exit_code == 0
    assert told.output.count("improvement") == 2


def test_a_new_configuration_has_no_expectation(suite: Path) -> None:
    expect(suite, "--update")
    suite.write_text(SUITE.replace("64", "128"))
    assert expect(suite).exit_code == 3


def test_what_is_no_expectation_is_refused(suite: Path) -> None:
    told = expect(suite)
    assert told.exit_code == 2
    assert "make it with --update" in told.stderr
    suite.with_name("e.json").write_text("[]")
    assert "not what `bench expect --update` writes" in expect(suite).stderr
