"""What sampling costs a run: blocks of steps with and without it, in turns.

``python tests/benchmarks/sampler.py [PAIRS]`` prints the ratio of each pair's median step seconds,
by the wall's clock and by the process' own (which other programs do not lengthen), and what the
sampler itself takes of a processor; the aim is at most 1.02 on a CPU and 1.005 on a GPU.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vram_plan.bench.calibrate.reference import configured
from vram_plan.bench.runs.device import default_device, gpu_uuid
from vram_plan.bench.runs.sampler import Sampler
from vram_plan.bench.translate import trace_config

MODEL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 3000,
}
BLOCK_SECONDS = 0.7
"""Of one kind at a time: seven samples."""


def step_of(device: str) -> Callable[[], None]:
    """One real training step of a small model."""
    import torch

    from vram_plan.bench.trace.timed import TimedRun

    torch.set_num_threads(1)
    fields, options = MODEL, {"seq_len": 128 if device == "cpu" else 2048}
    run = TimedRun(trace_config(configured(fields, options, device), fields), device, 0)

    def step() -> None:
        run.step.run(run.batch)
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(5):
        step()
    return step


def block(step: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of a step, by the wall's clock and by the process' own."""
    wall: list[float] = []
    own: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < BLOCK_SECONDS or len(wall) < 5:
        before = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - before[0])
        own.append(time.process_time() - before[1])
    return statistics.median(wall), statistics.median(own)


def processor_seconds(pid: int) -> float:
    """What a process has taken so far."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Pairs in a random order, so that a machine that warms up or is busy hits both alike."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    device, chance = default_device(), random.Random(7)
    ratios: dict[str, list[float]] = {"wall": [], "own": []}
    step = step_of(device)
    uuid = gpu_uuid() if device == "cuda" else None
    with tempfile.TemporaryDirectory() as folder:
        sampler = Sampler(os.getpid(), Path(folder), uuids=[uuid] if uuid else [])
        pid = sampler.process_id
        time.sleep(2.0)  # it has started
        began, taken = processor_seconds(pid), 0.0
        for _ in range(pairs):
            found = {}
            for on in chance.sample((True, False), 2):
                os.kill(pid, signal.SIGCONT if on else signal.SIGSTOP)
                started = time.perf_counter()
                found[on] = block(step)
                taken += (time.perf_counter() - started) * on
            for place, clock in enumerate(ratios):
                ratios[clock].append(found[True][place] / found[False][place])
        used = processor_seconds(pid) - began
        os.kill(pid, signal.SIGCONT)
        sampler.stop()
    print(f"{device}: step with / without sampling, {pairs} pairs")
    for clock, values in ratios.items():
        print(f"  {clock} clock: {told(values)}")
    print(f"  the sampler takes {used / taken:.2%} of a processor")


def told(ratios: list[float]) -> str:
    """The median, and the range in which it lies with 95 %."""
    chance = random.Random(7)
    drawn = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return f"median {statistics.median(ratios):.4f} (95 %: {drawn[50]:.4f} to {drawn[1949]:.4f})"


if __name__ == "__main__":
    main()
