"""README's accuracy section and the published page are what the measured rows say."""

from html import escape
from pathlib import Path

import pytest

from vram_plan.profiles.calibration import load_calibration
from vram_plan.profiles.measured import read_rows
from vram_plan.reports.accuracy import BEGIN, END, accuracy_section, main, put
from vram_plan.reports.page.markdown import markdown
from vram_plan.reports.page.published import TITLE, answer, published_sections
from vram_plan.reports.validate.run import Validation, validate

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def found() -> Validation:
    return validate(read_rows())


@pytest.fixture(scope="module")
def section(found: Validation) -> str:
    return accuracy_section(found, load_calibration())


def test_the_published_page_is_generated(found: Validation) -> None:
    text = markdown(TITLE, answer(found), published_sections(found, load_calibration()))
    again = "python -m vram_plan.reports.page.published docs"
    path = README.parent / "docs" / "accuracy.md"
    assert path.read_text(encoding="utf-8") == text, f"docs/accuracy.md has drifted; run {again}"
    assert escape(answer(found)) in path.with_suffix(".html").read_text(encoding="utf-8")


def test_the_section_is_generated(section: str) -> None:
    text = README.read_text(encoding="utf-8")
    again = "python -m vram_plan.reports.accuracy README.md"
    assert put(text, section) == text, f"README's accuracy section has drifted; run {again}"


def test_the_command_writes_it(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vram_plan.reports.accuracy.validate", lambda _: None)
    monkeypatch.setattr("vram_plan.reports.accuracy.accuracy_section", lambda *_: section)
    copy = tmp_path / "README.md"
    copy.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    assert main([str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{section}\n{END}\nafter\n"


def test_markers_are_needed() -> None:
    with pytest.raises(ValueError, match="accuracy"):
        put("no markers", "text")
