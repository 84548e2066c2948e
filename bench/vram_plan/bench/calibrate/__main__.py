"""Calibrate a CPU and check the plan on small fine-tunes: ``python -m vram_plan.bench.calibrate``.

One thread, and the process' own time, so that other programs matter as little as they can. With
``--ranks 2`` they run under DDP, each rank on a core of its own.
"""

from __future__ import annotations

import argparse
from statistics import median

from vram_plan.bench.calibrate.check import FINE_TUNES, check
from vram_plan.bench.calibrate.check_ranks import check_ranks
from vram_plan.bench.calibrate.machine import calibrate

_STEPS = 20
_TRAINED = tuple(name for name, (_, options) in FINE_TUNES.items() if "grad_accum" not in options)
"""Those without accumulation, under which a loop without ``no_sync`` reduces every micro-batch."""


def main() -> None:
    """Print every fine-tune with its error."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m vram_plan.bench.calibrate")
    parser.add_argument("--ranks", type=int, default=1)
    ranks = parser.parse_args().ranks
    torch.set_num_threads(1)
    machine = calibrate("cpu", print, ranks)
    found = check(machine, "cpu")
    if ranks > 1:
        found = check_ranks(machine, ranks, _TRAINED, _STEPS)
    errors = []
    for one in found:
        errors.append(abs(one.error))
        print(f"{one.name:20} {one.measured:8.4f} s {one.predicted:8.4f} s {one.error:+7.1%}")
    print(f"{len(errors)} fine-tunes: median {median(errors):.1%}, largest {max(errors):.1%}")


if __name__ == "__main__":
    main()
