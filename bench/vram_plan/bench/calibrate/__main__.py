"""Calibrate a CPU and check the plan on small fine-tunes: ``python -m vram_plan.bench.calibrate``.

One thread, and the process' own time, so that other programs matter as little as they can.
"""

from __future__ import annotations

from statistics import median

from vram_plan.bench.calibrate.check import check
from vram_plan.bench.calibrate.machine import calibrate


def main() -> None:
    """Print every fine-tune with its error."""
    import torch

    torch.set_num_threads(1)
    machine = calibrate("cpu", print)
    errors = []
    for one in check(machine, "cpu"):
        errors.append(abs(one.error))
        print(f"{one.name:20} {one.measured:8.4f} s {one.predicted:8.4f} s {one.error:+7.1%}")
    print(f"{len(errors)} fine-tunes: median {median(errors):.1%}, largest {max(errors):.1%}")


if __name__ == "__main__":
    main()
