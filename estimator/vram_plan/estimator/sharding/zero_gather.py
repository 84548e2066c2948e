"""Which weights ZeRO-3 holds gathered at every moment of the passes.

Every module gathers its own weights before it runs and frees them afterwards, unless they are
small, or needed again soon. In the second step DeepSpeed knows the order of the modules and
gathers ahead. A gathered bucket exists twice while it is unpacked: as the flat buffer of the
collective (until the last of its weights is needed) and as the weights themselves (from the first
one needed). Source: DeepSpeed 0.19.8 deepspeed/runtime/zero/partitioned_param_coordinator.py,
partition_parameters.py ``AllGatherCoalescedHandle``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Where = tuple[str, int, int, str]
"""Pass, link, layer, module."""
Told = tuple[int | str, ...]
"""Bytes gathered when a layer is through; its modules with ``running``, ``peaks`` and ``codes``."""
AGAIN = "again "
"""Stands before the path of a module that runs forward again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gathered:
    """Bytes gathered, by place and by weight; see ``Gathering``.

    ``beside`` is all that is said of a layer in one pass, equal for layers with the same beside;
    ``fetched`` are the weights of every all-gather and ``begun`` the modules that begin, by pass.
    """

    peaks: dict[Where, int]
    running: dict[Where, int]
    closing: dict[int, int]
    left: dict[tuple[str, int, int], int]
    codes: dict[Where, int] = field(default_factory=dict)
    beside: dict[tuple[str, int, int], Told] = field(default_factory=dict)
    fetched: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)


class Call(NamedTuple):
    """A module runs, or its gradient is computed.

    Attributes:
        weights: what it owns, by number.
        where: (pass, link, layer, module), to look the moment up afterwards.
        opens: it begins here (its weights are gathered); else it ends here.
        below: elements of the weights below it, where leaves ask for them.
        leaf: DeepSpeed does not look into it, and gathers all weights below it at once.
        frees: weights that go as it ends, those that learn not.
    """

    weights: tuple[int, ...]
    where: Where
    opens: bool
    below: int = 0
    leaf: bool = False
    frees: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """DeepSpeed's switches, in elements.

    Attributes:
        prefetch: elements gathered ahead at every call (``stage3_prefetch_bucket_size``).
        live: elements beyond which nothing is gathered ahead (``stage3_max_live_parameters``).
        reuse: weights needed again within so many are kept (``stage3_max_reuse_distance``).
    """

    prefetch: int
    live: int
    reuse: int


@dataclass(slots=True)
class _Bucket:
    weights: tuple[int, ...]
    waiting: set[int]
    flat: int
    unpacked: bool = False


@dataclass(slots=True)
class Gathering:
    """The second and later steps of one rank.

    Attributes:
        numels: elements of every weight.
        nbytes: bytes of every weight when gathered (padded to the number of ranks).
        resident: weights that stay gathered during the passes.
        flat: gathered weights are unpacked from a flat buffer (more than one rank).
        swapped: 8-bit weights, in whose place a layer that has run puts the codes of its own state
            (bitsandbytes 0.50.2 ``bitsandbytes/nn/modules.py`` Linear8bitLt.forward).
        frozen: weights that do not learn.
        viewed: those of which a backward function holds a view of what was gathered when it ran
            (bitsandbytes 0.50.2 ``bitsandbytes/nn/modules.py`` Linear4bit.forward).
        peaks: most bytes gathered in every place.
        running: most bytes gathered once a module there has its weights and runs.
        closing: weight → bytes gathered when its gradient is there, before its module frees it.
        left: (pass, link, layer) → bytes gathered when its last module is through.
        codes: bytes of small 8-bit weights that the last update gathered and that did not run yet.
    """

    numels: Sequence[int]
    nbytes: Sequence[int]
    resident: frozenset[int]
    limits: Limits
    calls: Sequence[Call]
    flat: bool = True
    swapped: frozenset[int] = frozenset()
    frozen: frozenset[int] = frozenset()
    viewed: frozenset[int] = frozenset()
    peaks: dict[Where, int] = field(default_factory=dict)
    running: dict[Where, int] = field(default_factory=dict)
    closing: dict[int, int] = field(default_factory=dict)
    left: dict[tuple[str, int, int], int] = field(default_factory=dict)
    codes: dict[Where, int] = field(default_factory=dict)
    idle: set[int] = field(default_factory=set)
    emptied: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    live: int = 0
    available: int = 0
    gathered: set[int] = field(default_factory=set)
    buckets: dict[int, _Bucket] = field(default_factory=dict)
    active: dict[int, int] = field(default_factory=dict)
    fetched_for: dict[int, int] = field(default_factory=dict)
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    uses: dict[int, list[int]] = field(default_factory=dict)
    passed: list[int] = field(default_factory=lambda: [0])
    deep: list[int] = field(default_factory=lambda: [0])
    turns: int = 0
    fetched: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)

    def run(self) -> Gathered:
        """Follow every call."""
        opened = [call for call in self.calls if call.opens]
        for step, call in enumerate(opened):
            own = sum(self.numels[w] for w in call.weights) if call.weights else 0
            self.passed.append(self.passed[-1] + own)
            self.deep.append(self.deep[-1] + call.below)
            self.turns += call.where[0] == "forward"
            for weight in call.weights:
                self.queue.append((weight, step))
                self.uses.setdefault(weight, []).append(step)
        step = 0
        self.idle = set(self.swapped & self.resident)
        for call in self.calls:
            if self.idle and call.where not in self.codes:
                self.codes[call.where] = sum(self.nbytes[w] for w in self.idle)
            if call.opens:
                self._fetch(call, step)
                step += 1
            elif call.weights or call.frees or self.seen:
                self._release(call, step)
            self._change(0, call)
            if call.opens and (call.weights or call.where in self.running):
                self.running[call.where] = max(self.running.get(call.where, 0), self.live)
            self.left[call.where[:3]] = self.live
        return Gathered(
            peaks=self.peaks,
            running=self.running,
            closing=self.closing,
            left=self.left,
            codes=self.codes,
            beside=self._beside(),
            fetched=self.fetched,
            begun=Counter(call.where[0] for call in opened),
        )

    def _beside(self) -> dict[tuple[str, int, int], Told]:
        found: dict[tuple[str, int, int], list[int | str]] = {}
        for where, peak in self.peaks.items():
            told = found.setdefault(where[:3], [self.left[where[:3]]])
            told += (where[3], self.running.get(where, -1), peak, self.codes.get(where, 0))
        return {place: tuple(told) for place, told in found.items()}

    def _fetch(self, call: Call, step: int) -> None:
        if call.weights:
            missing = [w for w in call.weights if w not in self.gathered and w not in self.buckets]
            missing = [w for w in missing if w not in self.resident]
            self._gather(missing, call)
            for weight in call.weights:
                self.active[weight] = self.active.get(weight, 0) + 1
                self._wait(weight, call)
            fresh = {w for w in call.weights if self.fetched_for.get(w, -1) < step}
            for _ in range(len(fresh)):
                weight, used = self.queue.popleft()
                self.fetched_for[weight] = used
        if self.queue:
            self._prefetch(call)
        if call.where[0] == "backward":
            self.closing.update(dict.fromkeys(call.weights, self.live))

    def _prefetch(self, call: Call) -> None:
        most = min(self.limits.live - self.available, self.limits.prefetch)
        ahead: list[int] = []
        elements = 0
        while self.queue and elements < most:
            weight, used = self.queue.popleft()
            self.fetched_for[weight] = max(self.fetched_for.get(weight, -1), used)
            known = weight in self.gathered or weight in self.buckets or weight in self.resident
            if not known and weight not in ahead:
                ahead.append(weight)
                elements += self.numels[weight]
        self._gather(ahead, call)

    def _gather(self, weights: list[int], call: Call) -> None:
        if not weights:
            return
        flat = sum(self.nbytes[w] for w in weights)
        self.available += sum(self.numels[w] for w in weights)
        bucket = _Bucket(tuple(weights), set(weights), flat)
        self.fetched.setdefault(call.where[0], []).append(bucket.weights)
        for weight in weights:
            self.buckets[weight] = bucket
        self._change(flat, call)

    def _wait(self, weight: int, call: Call) -> None:
        bucket = self.buckets.pop(weight, None)
        if bucket is None:
            return
        if not bucket.unpacked:
            bucket.unpacked = True
            self.gathered.update(bucket.weights)
            if self.flat and len(bucket.weights) > 1:
                self._change(bucket.flat, call)
        bucket.waiting.discard(weight)
        if self.flat and not bucket.waiting and len(bucket.weights) > 1:
            self._change(-bucket.flat, call)

    def _release(self, call: Call, step: int) -> None:
        if self.swapped and (call.where[0] == "forward" or call.where[3].startswith(AGAIN)):
            self._swap(call)
        for weight in call.weights:
            if call.where[0] == "backward":
                self.closing[weight] = self.live
            self.active[weight] -= 1
            if self._goes(weight, call, step):
                self._drop(weight, call)
        if call.frees or self.seen:
            self._let_go(call)

    def _goes(self, weight: int, call: Call, step: int) -> bool:
        """Whether a module's end frees it: nobody runs with it, or will soon."""
        if weight in self.resident or self.active[weight] or weight not in self.gathered:
            return False
        if self.fetched_for.get(weight, -1) > step or self._needed_soon(weight, step):
            return False
        return not (call.leaf and self._meets_model(step))

    def _let_go(self, call: Call) -> None:
        """What a recomputation gathered, and what a function that has gone back held."""
        if not call.where[3].startswith(AGAIN):
            for weight in self.seen.intersection(call.weights):
                self.seen.discard(weight)
                self._change(-self.nbytes[weight], call)
        for weight in self.frozen.intersection(call.frees):
            if weight in self.gathered and not self.active[weight]:
                self._drop(weight, call, viewed=weight in self.viewed)

    def _drop(self, weight: int, call: Call, *, viewed: bool = False) -> None:
        self.gathered.discard(weight)
        self.available -= self.numels[weight]
        if viewed:
            self.seen.add(weight)
        elif weight not in self.emptied:
            self._change(-self.nbytes[weight], call)
        self.emptied.discard(weight)

    def _swap(self, call: Call) -> None:
        for weight in self.swapped.intersection(call.weights):
            self.idle.discard(weight)
            if weight in self.gathered and weight not in self.emptied:
                self.emptied.add(weight)
                self._change(-self.nbytes[weight], call)

    def _needed_soon(self, weight: int, step: int) -> bool:
        uses = self.uses[weight]
        at = bisect_left(uses, step)
        return at < len(uses) and self.passed[uses[at]] - self.passed[step] < self.limits.reuse

    def _meets_model(self, step: int) -> bool:
        """The search for a leaf's next use looks below every module: it ends with the whole model.

        The model itself is the first to go back (``__params_to_release``).
        """
        ahead = self.deep[max(step, self.turns)] - self.deep[step]
        return step <= self.turns and ahead < self.limits.reuse

    def _change(self, delta: int, call: Call) -> None:
        self.live += delta
        self.peaks[call.where] = max(self.peaks.get(call.where, 0), self.live)
