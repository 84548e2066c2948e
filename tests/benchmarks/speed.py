"""How fast the plan answers: cold start as ratios, and microseconds a plan.

Run it from an environment where vram-plan is installed: ``python tests/benchmarks/speed.py``.
Commands are run in turn (A B C A B C …), each as a whole process; CPU seconds are the operating
system's own (user + system of the finished child), so a busy machine matters little. Medians of
the ratios, pair by pair, are what to quote.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from itertools import product

RUNS = 15
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import click, rich.console, rich.table": [
        sys.executable,
        "-c",
        "import click, rich.console, rich.table",
    ],
    "vram-plan --model 7b --zero 2 --gpus 8": [
        sys.executable,
        "-c",
        "import sys; from vram_plan.app.main import main; sys.argv[0] = 'vram-plan'; main()",
        "--model",
        "7b",
        "--zero",
        "2",
        "--gpus",
        "8",
    ],
}


def cpu_seconds(command: list[str]) -> float:
    """CPU seconds of one run of ``command``, bytecode cached as pip leaves it."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return usage.ru_utime + usage.ru_stime


def cold_start() -> None:
    """Print CPU seconds of each command and the ratios of the main job to the others."""
    for command in COMMANDS.values():
        cpu_seconds(command)
    runs = [{name: cpu_seconds(command) for name, command in COMMANDS.items()} for _ in range(RUNS)]
    names = list(COMMANDS)
    for name in names:
        print(f"{statistics.median(run[name] for run in runs):.3f} s CPU  {name}")
    for name in names[:-1]:
        ratios = sorted(run[names[-1]] / run[name] for run in runs)
        print(
            f"main job / {name}: median {statistics.median(ratios):.2f}, "
            f"min {ratios[0]:.2f}, max {ratios[-1]:.2f}, n {RUNS}"
        )


def plans() -> None:
    """Print CPU microseconds a plan over distinct configurations of known blocks."""
    from vram_plan.estimator import plan

    space = list(product((1, 2, 3), (8, 16, 64, 256), (1, 4), ("adamw", "sgd", "lion", "rmsprop")))
    options = [
        {"zero": zero, "gpus": gpus, "grad_accum": accum, "optimizer": optimizer}
        for zero, gpus, accum, optimizer in space
        if zero != 3 or optimizer != "rmsprop"
    ]
    for label, wanted in (
        ("ZeRO 1 to 3", options),
        ("ddp", [{k: v for k, v in o.items() if k != "zero"} for o in options]),
    ):
        for option in wanted:  # blocks are simulated once, as in a search
            plan("7b", **option)
        before = time.process_time()
        for _ in range(3):
            for option in wanted:
                plan("7b", **option)
        each = (time.process_time() - before) / (3 * len(wanted))
        print(f"{each * 1e6:,.0f} µs CPU a plan  ({label}, {len(wanted)} configurations)")


if __name__ == "__main__":
    cold_start()
    plans()
