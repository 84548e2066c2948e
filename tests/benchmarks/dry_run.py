"""How long a dry run takes after imports, and what it takes beside a plan of the same model.

``python tests/benchmarks/dry_run.py [REPEATS]``; aims: 7B LoRA 5 s, 70B on 64 FSDP ranks 20 s,
2 GiB of memory.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "7B LoRA": {"model": "llama-2-7b", "method": "lora"},
    "8B QLoRA": {"model": "llama-3-8b", "method": "qlora"},
    "70B full": {"model": "llama-2-70b"},
    "70B full, 64 FSDP ranks": {"model": "llama-2-70b", "fsdp": "full-shard", "gpus": 64},
}


def main() -> None:
    """Print CPU and wall seconds of every case, imports apart."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    from vram_plan.bench.dry_run import dry_run
    from vram_plan.estimator import plan

    began = time.process_time()
    dry_run(plan("gpt2", method="lora", seq_len=64).config)
    print(f"imports and a first small trace: {time.process_time() - began:.1f} s of CPU")
    for name, options in CASES.items():
        config = plan(**options).config
        cpu, wall = [], []
        for _ in range(repeats):
            start = time.process_time(), time.perf_counter()
            seen = dry_run(config)
            cpu.append(time.process_time() - start[0])
            wall.append(time.perf_counter() - start[1])
            assert seen.outcome == "ok", seen.error
        print(
            f"{name:26} CPU {statistics.median(cpu):5.1f} s (max {max(cpu):.1f}), "
            f"wall {statistics.median(wall):5.1f} s"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory of the process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
