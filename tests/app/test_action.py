"""The steps of ``action.yml``, run as a runner would: real command, a stand-in for GitHub's own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
SUITE = '[run]\ndevice = "cpu"\n\n[[cell]]\nmodel = "gpt2"\nlayers = 1\nseq_len = 64\n'
PULL = {
    "inputs.token": "secret",
    "github.event.pull_request.number": "7",
    "github.repository": "someone/something",
}
GH = """#!/bin/sh
printf '%s\\n' "$*" >> "$GH_CALLS"
case "$*" in *--paginate*) cat "$GH_COMMENTS" ;; esac
"""


class Runner:
    """A folder with what a runner gives a step."""

    def __init__(self, folder: Path, **inputs: str) -> None:
        self.folder = folder
        self.known = PULL | {
            f"inputs.{name}": inputs.get(name, given.get("default", ""))
            for name, given in ACTION["inputs"].items()
        }
        for name in ("gh-calls", "gh-comments", "summary"):
            (folder / name).touch()
        gh = folder / "bin" / "gh"
        gh.parent.mkdir()
        gh.write_text(GH)
        gh.chmod(0o755)

    def step(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a step; what it says of itself is known to later ones."""
        found = next(step for step in ACTION["runs"]["steps"] if step["name"] == name)
        output = self.folder / "output"
        output.write_text("")
        path = [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        env = {key: self._value(text) for key, text in found.get("env", {}).items()}
        env |= {
            "PATH": os.pathsep.join(path),
            "RUNNER_TEMP": str(self.folder),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            "GH_CALLS": str(self.folder / "gh-calls"),
            "GH_COMMENTS": str(self.folder / "gh-comments"),
        }
        ended = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", found["run"]],
            env=env,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        for line in output.read_text().splitlines():
            key, _, value = line.partition("=")
            self.known[f"steps.{found['id']}.outputs.{key}"] = value
        return ended

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def _value(self, text: str) -> str:
        return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: self.known[found[1]], text)


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE)
    return str(path)


def test_an_expectation_that_holds_is_a_comment_and_a_pass(tmp_path: Path, suite: str) -> None:
    runner = Runner(tmp_path, suite=suite, level="plan", expected=str(tmp_path / "e.json"))
    command = [str(Path(sys.executable).parent / "vram-plan"), "bench", "expect", suite]
    subprocess.run([*command, "--level", "plan", "--expected", "e.json", "--update"], cwd=tmp_path)
    runner.step("Judge")
    assert runner.known["steps.judge.outputs.code"] == "0"
    assert "gpt2" in runner.text("summary")
    marker = re.search(r"marker='(.*)'", (ROOT / "action.yml").read_text())
    assert marker is not None
    assert runner.text("vram-plan-comment.md").startswith(marker[1])
    assert runner.step("Comment").returncode == 0
    assert "repos/someone/something/issues/7/comments -F body=@" in runner.text("gh-calls")
    assert runner.step("Result").returncode == 0


def test_the_comment_of_the_last_push_is_updated(tmp_path: Path, suite: str) -> None:
    runner = Runner(tmp_path, suite=suite)
    (tmp_path / "vram-plan-comment.md").write_text("changed")
    (tmp_path / "gh-comments").write_text("4711\n")
    assert runner.step("Comment").returncode == 0
    assert "--method PATCH repos/someone/something/issues/comments/4711" in runner.text("gh-calls")


@pytest.mark.parametrize(("code", "passes"), [("0", True), ("1", False), ("2", False), ("3", True)])
def test_what_ends_the_job(tmp_path: Path, code: str, passes: bool) -> None:
    runner = Runner(tmp_path)
    runner.known["steps.judge.outputs.code"] = code
    assert (runner.step("Result").returncode == 0) is passes


@pytest.mark.parametrize(
    ("inputs", "code"),
    [({"mode": "guess"}, "2"), ({"mode": "check", "suite": "no-such"}, "2")],
)
def test_what_cannot_run_is_said(tmp_path: Path, inputs: dict[str, str], code: str) -> None:
    runner = Runner(tmp_path, **inputs)
    told = runner.step("Judge")
    assert runner.known["steps.judge.outputs.code"] == code
    assert told.stderr


def test_every_step_that_is_named_by_an_output_exists() -> None:
    ids = {step.get("id") for step in ACTION["runs"]["steps"]}
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"steps\.(\w+)\.outputs", text)) <= ids


def workflows() -> list[Any]:
    return [yaml.safe_load(path.read_text()) for path in (ROOT / "docs/workflows").glob("*.yml")]


def test_the_workflows_give_the_action_what_it_takes() -> None:
    uses = [
        step
        for workflow in workflows()
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "vram-plan@" in step.get("uses", "")
    ]
    assert len(uses) == 3
    required = {name for name, given in ACTION["inputs"].items() if given.get("required")}
    for step in uses:
        assert required <= set(step["with"]) <= set(ACTION["inputs"])
