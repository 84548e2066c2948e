"""How fast a search is: CPU seconds on one core and configurations a second, by space.

Run it from an environment where vram-plan is installed: ``python tests/benchmarks/search.py``.
Raw configurations are the product of the choices, the micro-batch (``auto`` everywhere) not
counted. Each search is a process of its own, so nothing is remembered from another; CPU seconds
are those of the search itself, imports and catalogues not counted. Where Calculon
(github.com/calculon-ai/calculon) is importable from its own checkout, its search runs beside it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RENT = {"gpus": "1..64", "gpu": "any", "zero": "any", "checkpointing": "any", "tp": "auto"}
OWN = {"gpus": "1..64", "gpu": "a100-80gb-sxm", "zero": "any", "checkpointing": "any"}
WHOLE = RENT | {"offload": "any"}
"""1,904,640 raw configurations."""
MILLION = WHOLE | {"gpus": "1..34"}
"""1,011,840: the project's target is a million in two seconds on one core."""
SPACES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "what needs least": (WHOLE, {"objective": "memory"}),
    "what to rent, fastest": (WHOLE, {"objective": "throughput"}),
    "what to rent, soonest": (WHOLE, {"objective": "time"}),
    "what to rent, cheapest": (WHOLE, {"objective": "cost"}),
    "a million, fastest": (MILLION, {"objective": "throughput"}),
    "a million, soonest": (MILLION, {"objective": "time"}),
    "a million, cheapest": (MILLION, {"objective": "cost"}),
    "a million, least": (MILLION, {"objective": "memory"}),
    "the same at $40 an hour": (WHOLE, {"objective": "throughput", "max_usd_per_hour": 40.0}),
    "which optimizer, fastest": (
        RENT | {"optimizer": "adamw,adamw-8bit,lion"},
        {"objective": "throughput"},
    ),
    "on one kind of GPU": (OWN | {"offload": "any", "tp": "auto"}, {"objective": "throughput"}),
}


def one(name: str) -> None:
    """Search one space; print a line of JSON."""
    from vram_plan.estimator.search.search import search
    from vram_plan.estimator.search.space import parse_space
    from vram_plan.estimator.search.wish import Wish
    from vram_plan.profiles.models import resolve_model

    ranges, wish = SPACES[name]
    space = parse_space(resolve_model("7b"), ranges | {"micro_batch": "auto"})
    before = time.process_time()
    found = search(space, Wish(**wish))
    seconds = time.process_time() - before
    figures = {"raw": space.raw, "seconds": seconds, "ledgers": found.examined}
    figures |= {"fitting": found.fitting, "front": len(found.front), "yardstick": _yardstick()}
    print(json.dumps(figures))


def _yardstick() -> float:
    """CPU seconds of a million additions in Python: how fast this machine is just now."""
    before = time.process_time()
    sum(number * number for number in range(1_000_000))
    return time.process_time() - before


def calculon() -> None:
    """Its own search of one model on one kind of GPU, on one core, or a line that it is missing."""
    spec = find_spec("calculon")
    if spec is None or spec.origin is None:
        print("Calculon is not importable here: not compared")
        return
    root = Path(spec.origin).parents[1]
    out = Path(tempfile.mkdtemp()) / "best.json"
    model, system = root / "models" / "megatron-5B.json", root / "systems" / "a100_80g.json"
    command = [sys.executable, str(root / "bin" / "calculon"), "llm-optimal-execution", str(model)]
    command += ["64", "256", "float16", str(system), str(out), "-c", "1", "-m", "-n"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    rates = re.findall(r"(?:Total executions|Calculation rate): .*", result.stdout + result.stderr)
    print("Calculon, 5B on 64 × A100, one core:", "; ".join(rates) or "no figures were printed")


def main() -> None:
    """Every space, then Calculon."""
    for name in SPACES:
        command = [sys.executable, __file__, name]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = json.loads(out)
        rate = found["raw"] / found["seconds"]
        print(
            f"{name} ({SPACES[name][1]['objective']}): {found['raw']:,} raw configurations in "
            f"{found['seconds']:.2f} s CPU, {rate:,.0f} a second; {found['ledgers']:,} ledgers, "
            f"{found['fitting']:,} plans, front of {found['front']}; a million additions took "
            f"{found['yardstick']:.2f} s",
            flush=True,
        )
    calculon()


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
