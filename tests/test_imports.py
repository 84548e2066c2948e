"""Start-up stays small: the plan needs no heavy library, and nothing imports one by accident."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "pandas", "transformers", "peft", "deepspeed", "plotly", "pynvml")


@pytest.mark.parametrize(
    "statement",
    [
        "from vram_plan.estimator import plan; plan('7b', zero=2, gpus=8)",
        "import vram_plan.app.plan_command, vram_plan.app.catalogue_commands, vram_plan.app.main",
        "import vram_plan.bench, vram_plan.reports",
    ],
)
def test_no_heavy_import(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_estimator_uses_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules);"
        "from vram_plan.estimator import plan; plan('7b', zero=2, gpus=8);"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names) - {'vram_plan'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
