"""What sampling costs a run: the same run with and without it, in turns.

``python tests/benchmarks/sampler.py [PAIRS]`` prints the ratio of the median step seconds of each
pair; the aim is at most 1.02 on a CPU and 1.005 on a GPU.
"""

from __future__ import annotations

import statistics
import sys

from vram_plan.bench.runs.device import default_device
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import launch

OPTIONS = {"seq_len": 128, "attention": "eager", "precision": "fp32", "weights_dtype": "fp32"}


def seconds(job: Job, hertz: float) -> float:
    """Median seconds of a step of one run."""
    ended = launch(job, hertz=hertz)
    if ended.result is None or ended.failure is not None:
        raise SystemExit(f"the run failed: {ended.failure}")
    return float(statistics.median(ended.result["step_seconds"]))


def main() -> None:
    """Alternate, so that a machine that warms up or throttles hits both alike."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    device = default_device()
    job = Job(model="qwen2.5-0.5b", layers=2, options=OPTIONS, device=device, steps=10)
    ratios = []
    for number in range(pairs):
        order = (10.0, 0.0) if number % 2 else (0.0, 10.0)
        found = {hertz: seconds(job, hertz) for hertz in order}
        ratios.append(found[10.0] / found[0.0])
        print(f"pair {number + 1}: {found[0.0]:.4f} s without, {found[10.0]:.4f} s with sampling")
    print(
        f"{device}: with / without, {pairs} pairs: median {statistics.median(ratios):.4f}, "
        f"min {min(ratios):.4f}, max {max(ratios):.4f}"
    )


if __name__ == "__main__":
    main()
