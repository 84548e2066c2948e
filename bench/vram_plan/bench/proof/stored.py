"""Plans made anew against traces of before: a trace takes seconds, a plan a millisecond.

After an edit of the closed form alone the traces still hold; after an edit of the tracer they do
not, and the places that it touches have to be taken out of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from vram_plan.bench.proof.case import Peak, Result, configured, paired, traced_as
from vram_plan.bench.proof.sample import Candidate

__all__ = ["replanned"]


def replanned(results: Iterable[Result]) -> Iterator[Result]:
    """Results with today's plan; those whose step the tracer would run differently are left out.

    Left out are refused and failed places too: what the plan takes may have changed.
    """
    for result in results:
        if result.outcome != "ok" or not result.traced_instant:
            continue
        candidate = Candidate(model=result.model, options=result.options)
        try:
            config = configured(candidate)
            known = traced_as(config, candidate.model) == result.traced_as
        except ValueError:
            continue
        if known:
            yield replace(result, **paired(config, _peak(result)))


def _peak(result: Result) -> Peak:
    theirs = {name: traced for name, (_, traced) in result.components.items()}
    return Peak(bytes=result.traced, instant=result.traced_instant, components=theirs)
