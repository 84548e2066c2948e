"""The best plans so far and their front; says what cannot change either any more."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable
from heapq import nsmallest
from itertools import chain

from vram_plan.estimator.search import ties
from vram_plan.estimator.search.cells import Machine
from vram_plan.estimator.search.pareto import place
from vram_plan.estimator.search.wish import Candidate, Wish

_TRUST = 1 - 1e-9
"""A floor is a sum of floats: it may lie a rounding above what it bounds."""
_BEYOND = 1.001
"""Figures of five digits tell such worths apart."""


class Standings:
    """Candidates as they come in."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._plans: list[Candidate] = []
        self._worths: dict[Hashable, list[float]] = defaultdict(list)
        self._leaders: dict[Hashable, list[float]] = {}
        self._last: float | None = None
        self._worth = 0.0
        self._front: list[tuple[float, float, int, Candidate]] = []
        self.count = 0

    def add(self, plan: Candidate) -> None:
        """Take a candidate in where it belongs."""
        self.count += 1
        self._plans.append(plan)
        self._join_best(plan)
        if self._wish.wants_front and plan.usd_per_token is not None:
            self._join_front(plan)

    def _join_best(self, plan: Candidate) -> None:
        """The best of plans that tie stands for all of them.

        More plans never make fewer groups up to some worth, so what is beaten once stays so.
        """
        objective, top = self._wish.objective, self._wish.top
        worth = plan.worth(objective)
        if self.is_beaten(worth):
            return
        where = ties.place(objective, plan)
        insort(self._worths[where], worth)
        leaders = ties.leaders(objective, self._worths[where], top)
        if leaders == self._leaders.get(where):
            return
        self._leaders[where] = leaders
        best = nsmallest(top, chain.from_iterable(self._leaders.values()))
        if len(best) == top:
            self._worth = ties.limit(best[-1])
            self._last = ties.figure(objective, self._worth)

    def _join_front(self, plan: Candidate) -> None:
        mine = place(plan)
        at = bisect_left(self._front, mine, key=lambda item: item[:3])
        if at and self._front[at - 1][1] <= mine[1]:
            return
        end = at
        while end < len(self._front) and self._front[end][1] >= mine[1]:
            end += 1
        self._front[at:end] = [(*mine, plan)]

    def best(self) -> tuple[Candidate, ...]:
        """The best plans, best first, each with those that tie with it."""
        return ties.grouped(self._plans, self._wish)

    def front(self) -> tuple[Candidate, ...]:
        """The front, fastest first."""
        return tuple(item[3] for item in self._front)

    def is_hopeless(self, machine: Machine, seconds: float) -> bool:
        """Whether nothing on a machine that takes ``seconds`` a token at least can be listed."""
        seconds *= _TRUST
        usd = None if machine.usd_per_hour is None else machine.usd_per_hour / 3600 * seconds
        worth = usd if self._wish.objective == "cost" else seconds
        if worth is None or not self.is_beaten(worth):
            return False
        return usd is None or self._is_dominated(seconds, usd)

    def is_beaten(self, worth: float) -> bool:
        """Whether enough better plans are known than one of this worth at best.

        One that ties with the last of them has to be named with it.
        """
        if self._last is None or worth <= self._worth:
            return False
        beyond = worth > _BEYOND * self._worth
        return beyond or ties.figure(self._wish.objective, worth) > self._last

    def _is_dominated(self, seconds: float, usd: float) -> bool:
        at = bisect_left(self._front, (seconds,), key=lambda item: item[:1])
        return at > 0 and self._front[at - 1][1] <= usd
