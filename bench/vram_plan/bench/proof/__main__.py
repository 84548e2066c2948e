"""``python -m vram_plan.bench.proof --seed 1 --count 400``: run the sweep, print its table."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vram_plan.bench.proof.case import Result
from vram_plan.bench.proof.runner import read_results, sweep, write_results
from vram_plan.bench.proof.sample import slots
from vram_plan.bench.proof.stored import replanned
from vram_plan.bench.proof.table import table

_WORST = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sample of a seed."""
    parser = argparse.ArgumentParser(prog="python -m vram_plan.bench.proof", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--count", type=int, default=400, help="places in the sample")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--output", type=Path, help="JSON Lines file; continued where it exists")
    parser.add_argument(
        "--replan",
        action="store_true",
        help="plan the places of --output anew against their traces; trace again only those "
        "whose traced step is another now (not for edits of the tracer itself)",
    )
    options = parser.parse_args(arguments)
    places = slots(options.seed, options.count)
    if options.replan:
        if options.output is None:
            parser.error("--replan needs the file of a finished sweep: give --output FILE")
        write_results(options.output, replanned(read_results(options.output, places)))

    def progress(count: int, last: Result) -> None:
        shown = f"{100 * last.error:+.3f} %" if last.outcome == "ok" else last.outcome
        line = f"{count} of {options.count}: {last.family} {last.method} {last.precision} {shown}"
        print(f"\r{line:<79}", end="", file=sys.stderr, flush=True)

    results = sweep(places, jobs=options.jobs, output=options.output, progress=progress)
    print(file=sys.stderr)
    for line in (*table(results), *_notes(results)):
        print(line)
    return 0


def _notes(results: list[Result]) -> list[str]:
    """Outcomes, refusals and the worst results."""
    outcomes = Counter(result.outcome for result in results)
    lines = ["", ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))]
    draws = sum(len(result.refusals) for result in results)
    lines.append(f"draws refused by the plan, the tracer or PEFT: {draws}")
    lines += [f"error: {r.number} {r.message}" for r in results if r.outcome == "error"]
    ran = [result for result in results if result.outcome == "ok"]
    for r in sorted(ran, key=lambda r: -abs(r.error))[:_WORST]:
        kind = r.model["model_type"]
        lines.append(f"{100 * r.error:+.3f} % {r.number} {kind} {r.method} {r.precision}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
