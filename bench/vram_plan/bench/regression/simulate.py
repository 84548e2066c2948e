"""How often the rules are wrong, on noise like that of training runs.

    python -m vram_plan.bench.regression.simulate --seed 1

Run-to-run noise is log-normal; 30 % of its variance is drift of the machine (a first-order
autoregression), and 3 % of runs are 3 to 12 % slow by themselves. Those shares are assumptions;
``vram-plan bench aa`` measures a machine's own.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vram_plan.bench.regression.rules import (
    BASELINE,
    NEW_RUNS,
    PAIRS,
    judge_history,
    judge_pairs,
)

__all__ = ["NOISES", "RULES", "SLOWDOWNS", "Machine", "flagged"]

SLOWDOWNS = (0.0, 0.03, 0.05, 0.10)
NOISES = (0.01, 0.02)
_DRIFT_SHARE = 0.3
_DRIFT_MEMORY = 0.8
_OUTLIERS = 0.03
_OUTLIER_LOW, _OUTLIER_HIGH = 0.03, 0.12
_PREVIOUS = 0.05


@dataclass(slots=True)
class Machine:
    """Where runs of one configuration take 1 second, more or less.

    Attributes:
        noise: coefficient of variation from run to run.
        dice: its randomness.
        drift: of the machine now, in standard deviations of the drift.
    """

    noise: float
    dice: random.Random
    drift: float = 0.0

    def __post_init__(self) -> None:
        self.drift = self.dice.gauss(0, 1)

    def run(self, slowdown: float = 0.0) -> float:
        """Seconds of one run."""
        kept = _DRIFT_MEMORY
        self.drift = kept * self.drift + math.sqrt(1 - kept * kept) * self.dice.gauss(0, 1)
        own = math.sqrt(1 - _DRIFT_SHARE) * self.dice.gauss(0, 1)
        seconds = math.exp(self.noise * (own + math.sqrt(_DRIFT_SHARE) * self.drift))
        if self.dice.random() < _OUTLIERS:
            seconds *= 1 + self.dice.uniform(_OUTLIER_LOW, _OUTLIER_HIGH)
        return seconds * (1 + slowdown)


def by_history(machine: Machine, slowdown: float) -> bool:
    """Two checks in a row after the change, of three runs each."""
    runs = [machine.run() for _ in range(BASELINE)]
    runs += [machine.run(slowdown) for _ in range(2 * NEW_RUNS)]
    return judge_history(runs).status == "regression"


def by_pairs(machine: Machine, slowdown: float) -> bool:
    """Five interleaved pairs, and five more to confirm."""
    batches = []
    for _ in range(2):
        pairs = [(machine.run(), machine.run(slowdown)) for _ in range(PAIRS)]
        batches.append(([a for a, _ in pairs], [b for _, b in pairs]))
    return judge_pairs(*batches[0], confirmation=batches[1]).status == "regression"


def by_previous_run(machine: Machine, slowdown: float) -> bool:
    """What many trackers do: more than 5 % above the run before."""
    before = machine.run()
    return machine.run(slowdown) > before * (1 + _PREVIOUS)


RULES: dict[str, Callable[[Machine, float], bool]] = {
    "history, confirmed": by_history,
    "A/B pairs, confirmed": by_pairs,
    "previous run + 5 %": by_previous_run,
}


def flagged(rule: str, noise: float, slowdown: float, *, trials: int, seed: int) -> int:
    """In how many trials the rule calls it a regression."""
    dice = random.Random(f"{seed} {rule} {noise} {slowdown}")
    decide = RULES[rule]
    return sum(decide(Machine(noise, dice), slowdown) for _ in range(trials))


def _table(trials: int, seed: int) -> Iterator[str]:
    yield f"share of {trials:,} trials called a regression (seed {seed})"
    head = "".join(f"{f'+{slowdown:.0%}' if slowdown else 'none':>9}" for slowdown in SLOWDOWNS)
    yield f"{'rule':<24}{'noise':>6}{head}"
    for rule in RULES:
        for noise in NOISES:
            cells = ""
            for slowdown in SLOWDOWNS:
                found = flagged(rule, noise, slowdown, trials=trials, seed=seed)
                cells += f"{found / trials:>9.2%}"
            yield f"{rule:<24}{noise:>6.0%}{cells}"


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=20_000)
    given = parser.parse_args(arguments)
    for line in _table(given.trials, given.seed):
        print(line, flush=True)


if __name__ == "__main__":
    main()
