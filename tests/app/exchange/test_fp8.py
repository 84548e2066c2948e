"""Products in 8 bits in an Accelerate file: read, and written as it was read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vram_plan.app.exchange.accelerate import write
from vram_plan.app.exchange.facts import CannotSayError
from vram_plan.app.exchange.merge import read_files
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.models import resolve_model

PLAIN = """compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
mixed_precision: fp8
num_machines: 1
num_processes: 1
"""
FSDP = """distributed_type: FSDP
mixed_precision: fp8
num_machines: 1
num_processes: 4
fsdp_config:
  fsdp_version: 2
"""


@pytest.mark.parametrize(
    ("text", "recipe", "engine"),
    [
        (PLAIN, "ao-tensorwise", "torch"),
        (PLAIN + "fp8_config:\n  backend: AO\n", "ao-tensorwise", "torch"),
        (PLAIN + "fp8_config:\n  backend: TE\n", "te-delayed", "torch"),
        (
            PLAIN + "fp8_config:\n  backend: TE\n  use_mxfp8_block_scaling: true\n",
            "te-mxfp8",
            "torch",
        ),
        (FSDP, "ao-tensorwise", "fsdp2"),
    ],
)
def test_accelerates_fp8_is_read_and_written(
    tmp_path: Path, text: str, recipe: str, engine: str
) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(text, encoding="utf-8")
    found = read_files([str(file)], "llama-3.1-8b").config
    assert (found.precision, found.fp8_recipe, found.engine) == ("fp8", recipe, engine)
    assert found.autocast == (engine == "torch")  # Accelerate turns autocast on with fp8
    file.write_text(write(found), encoding="utf-8")
    again = read_files([str(file)], "llama-3.1-8b").config
    assert again.options() == found.options()


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(PLAIN, encoding="utf-8")
    given = {"precision": "bf16", "weights_dtype": "bf16"}
    found = read_files([str(file)], "llama-3.1-8b", given).config
    assert (found.precision, found.fp8_recipe) == ("bf16", "none")


def test_another_library_is_named(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(PLAIN + "fp8_config:\n  backend: MSAMP\n", encoding="utf-8")
    read = read_files([str(file)], "llama-3.1-8b")
    assert any("msamp is not planned" in warning for warning in read.warnings)


def test_what_accelerate_cannot_say() -> None:
    model = resolve_model("llama-3.1-8b")
    with pytest.raises(CannotSayError, match="add --amp"):
        write(resolve(model, {"precision": "fp8"}))
    with pytest.raises(CannotSayError, match="no word for --fp8-recipe ao-rowwise"):
        write(resolve(model, {"precision": "fp8", "fp8_recipe": "ao-rowwise", "amp": True}))
