"""Small fine-tunes on several ranks of a CPU beside what a calibrated plan says of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vram_plan.bench.calibrate.check import FINE_TUNES, Checked
from vram_plan.bench.calibrate.collectives import run_ranks
from vram_plan.bench.calibrate.reference import configured
from vram_plan.bench.calibrate.step_rank import NAMES, STEPS
from vram_plan.estimator.speed.step_time import step_time
from vram_plan.profiles.machine import Machine, read_machine, write_machine

__all__ = ["check_ranks"]

_STEP_RANK = "vram_plan.bench.calibrate.step_rank"
_LIMIT_SECONDS = 600.0


def check_ranks(
    machine: Machine, ranks: int, names: Sequence[str], steps: int
) -> Iterator[Checked]:
    """Run fine-tunes under DDP and predict each with the machine's own links.

    Raises:
        ValueError: when a rank fails.
    """
    told = {NAMES: ",".join(names), STEPS: str(steps)}
    (measured,) = run_ranks(_STEP_RANK, "cpu", ranks, _LIMIT_SECONDS, told)
    with tempfile.TemporaryDirectory(prefix="vram-plan-check-") as folder:
        path = str(Path(folder) / "machine.toml")
        write_machine(machine, path)
        card = read_machine(path)  # links are those of the file that the card names
        for name in names:
            fields, options = FINE_TUNES[name]
            spread = {"engine": "ddp", "gpus": ranks, "gpu": card.gpu, **options}
            found = step_time(configured(fields, spread, "cpu"), card.curves)
            assert found is not None
            yield Checked(name=name, measured=measured[name], predicted=found.seconds)
