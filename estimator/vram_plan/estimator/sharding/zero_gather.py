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
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

Where = tuple[str, int, int, str]
"""Pass, link, layer, module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Bytes gathered, by place and by weight; see ``Gathering``."""

    peaks: dict[Where, int]
    running: dict[Where, int]
    closing: dict[int, int]
    left: dict[tuple[str, int, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A module runs, or its gradient is computed.

    Attributes:
        weights: what it owns, by number.
        where: (pass, link, layer, module), to look the moment up afterwards.
        opens: it begins here (its weights are gathered); else it ends here.
    """

    weights: tuple[int, ...]
    where: Where
    opens: bool


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
        peaks: most bytes gathered in every place.
        running: most bytes gathered once a module there has its weights and runs.
        closing: weight → bytes gathered when its gradient is there, before its module frees it.
        left: (pass, link, layer) → bytes gathered when its last module is through.
    """

    numels: Sequence[int]
    nbytes: Sequence[int]
    resident: frozenset[int]
    limits: Limits
    calls: Sequence[Call]
    flat: bool = True
    peaks: dict[Where, int] = field(default_factory=dict)
    running: dict[Where, int] = field(default_factory=dict)
    closing: dict[int, int] = field(default_factory=dict)
    left: dict[tuple[str, int, int], int] = field(default_factory=dict)
    live: int = 0
    available: int = 0
    gathered: set[int] = field(default_factory=set)
    buckets: dict[int, _Bucket] = field(default_factory=dict)
    active: dict[int, int] = field(default_factory=dict)
    fetched_for: dict[int, int] = field(default_factory=dict)
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    uses: dict[int, list[int]] = field(default_factory=dict)
    passed: list[int] = field(default_factory=lambda: [0])

    def run(self) -> Gathered:
        """Follow every call."""
        opened = [call for call in self.calls if call.opens]
        for step, call in enumerate(opened):
            self.passed.append(self.passed[-1] + sum(self.numels[w] for w in call.weights))
            for weight in call.weights:
                self.queue.append((weight, step))
                self.uses.setdefault(weight, []).append(step)
        step = 0
        for call in self.calls:
            if call.opens:
                self._fetch(call, step)
                step += 1
            else:
                self._release(call, step)
            self._change(0, call)
            if call.opens:
                self.running[call.where] = max(self.running.get(call.where, 0), self.live)
            self.left[call.where[:3]] = self.live
        return Gathered(
            peaks=self.peaks, running=self.running, closing=self.closing, left=self.left
        )

    def _fetch(self, call: Call, step: int) -> None:
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
        for weight in call.weights:
            if call.where[0] == "backward":
                self.closing[weight] = self.live
            self.active[weight] -= 1
            if weight in self.resident or self.active[weight] or weight not in self.gathered:
                continue
            if self.fetched_for.get(weight, -1) > step or self._needed_soon(weight, step):
                continue
            self.gathered.discard(weight)
            self.available -= self.numels[weight]
            self._change(-self.nbytes[weight], call)

    def _needed_soon(self, weight: int, step: int) -> bool:
        uses = self.uses[weight]
        at = bisect_left(uses, step)
        return at < len(uses) and self.passed[uses[at]] - self.passed[step] < self.limits.reuse

    def _change(self, delta: int, call: Call) -> None:
        self.live += delta
        self.peaks[call.where] = max(self.peaks.get(call.where, 0), self.live)
