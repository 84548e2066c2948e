"""What a segment holds while each of its modules runs, forward and back.

ZeRO-3 gathers module by module, and the fullest moment of a segment without gathered weights need
not be the one with them. A profile has both moments that count for a module: when its weights
are fetched, and the fullest one from then on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.sharding.zero_gather import AGAIN
from vram_plan.estimator.simulate import Bytes, Run, play
from vram_plan.estimator.tape import Node, Storage, Tensor

__all__ = ["Profile", "Span", "owner", "profile"]


@dataclass(slots=True)
class Span:
    """One module's time: bytes by component when it begins, and at its fullest moment."""

    begin: Bytes
    fullest: Bytes


Spans = dict[str, Span]
"""Module path → its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One segment.

    Attributes:
        forward: by module.
        backward: by module; of what runs forward again with `AGAIN` before the path.
        silent: modules through which no gradient passes.
    """

    forward: Spans
    backward: Spans
    silent: frozenset[str]


def owner(weight: str) -> str:
    """The module that a weight belongs to."""
    return weight.rpartition(".")[0]


@lru_cache(maxsize=512)
def profile(run: Run) -> Profile:
    """Run one segment and note what lives while each of its modules runs."""
    watcher = _Watcher()
    original = run.segment.run

    def watched(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
        watcher.enter(f)
        out = original(f, x, shared)
        watcher.leave()
        return out

    # Until the head is gathered it is the forward pass, whose entry has the model's variables.
    play(replace(run, segment=replace(run.segment, run=watched), local=0), watcher)
    loud = watcher.loud - (watcher.mute if run.segment.kind == "embedding" else set())
    return Profile(
        forward=watcher.spans["forward"],
        backward=watcher.spans["backward"],
        silent=frozenset(watcher.spans["forward"]) - loud - _asked(run, watcher) - {""},
    )


def _asked(run: Run, watcher: _Watcher) -> frozenset[str]:
    """The tokens' table, whose output is made to require a gradient though it does not learn."""
    return frozenset(watcher.modules[:1] if run.input_gradients else ())


@dataclass(slots=True)
class _Watcher:
    """Follows the tape; weights become known in the order in which modules run.

    Attributes:
        made: tensors made before each module of the first forward pass began.
        nodes: nodes recorded before each module began, in the pass that records them.
        mute: modules whose first operator, a table's lookup, records nothing; sums of lookups are
            not theirs, but those of the module around them.
    """

    f: Forward | None = None
    inside: bool = False
    place: str = "forward"
    base: int = 0
    modules: list[str] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    loud: set[str] = field(default_factory=set)
    mute: set[str] = field(default_factory=set)
    births: dict[str, int] = field(default_factory=dict)
    seen: int = 0
    spans: dict[str, Spans] = field(default_factory=lambda: {"forward": {}, "backward": {}})

    def enter(self, f: Forward) -> None:
        """The segment's own code begins, for the first time or again."""
        self.f, self.inside, self.base = f, True, f.t.made
        self.nodes, self.owners = [], []

    def leave(self) -> None:
        """It ends."""
        self.inside = False
        self._meet(len(self.modules))
        assert self.f is not None
        bounds = [*self.nodes, len(self.f.t.nodes)]
        spans = zip(self.owners, bounds, bounds[1:], strict=False)
        self.loud.update(name for name, begin, end in spans if end > begin)

    def born(self, storage: Storage) -> None:
        """A storage is made by the module at work."""
        if self.f is None:
            return
        module = self._running() if self.inside else self._going_back()
        if self.inside and self.place == "backward":
            module = AGAIN + module
        if self.inside:
            self._hear(module)
        meter = self.f.t.meter
        spans = self.spans[self.place]
        span = spans.get(module)
        if span is None:
            begin = dict(meter.by_component)
            begin[storage.component] -= storage.nbytes
            spans[module] = Span(begin, dict(meter.by_component))
        elif meter.live > sum(span.fullest.values()):
            span.fullest = dict(meter.by_component)

    def _hear(self, module: str) -> None:
        """When a second tensor is made, the first operator has recorded its node, or none."""
        assert self.f is not None
        self.births[module] = self.births.get(module, 0) + 1
        if self.births[module] == 2 and module in self.owners:
            begun = self.nodes[self.owners.index(module)]
            if len(self.f.t.nodes) == begun:
                self.mute.add(module)

    def died(self, storage: Storage) -> None:
        """Its last reference is gone."""

    def reach(self, place: str, leaf: Node | None, attached: list[Storage]) -> None:
        """A place in the run."""
        if place == "backward":
            self.place = "backward"

    def _running(self) -> str:
        assert self.f is not None
        names = list(self.f.params)
        if len(names) > self.seen:
            for name in names[self.seen :]:
                if owner(name) not in self.modules[-1:]:
                    self.modules.append(owner(name))
                    self.made.append(self.f.t.made - self.base)
            self.seen = len(names)
        at = bisect_right(self.made, self.f.t.made - self.base)
        self._meet(at)
        return self.modules[at - 1] if at else ""

    def _meet(self, at: int) -> None:
        """The modules up to this one have begun."""
        assert self.f is not None
        while len(self.owners) < at:
            self.owners.append(self.modules[len(self.owners)])
            self.nodes.append(len(self.f.t.nodes))

    def _going_back(self) -> str:
        assert self.f is not None
        at = bisect_right(self.nodes, len(self.f.t.nodes))
        return self.owners[at - 1] if at else ""
