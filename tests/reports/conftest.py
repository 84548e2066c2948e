"""Runs made up for the tests of pages and figures."""

from collections.abc import Callable
from typing import Any

import pytest

from vram_plan.bench.measurement import Instant, Measurement

GIB = 2**30


def make_run(number: int, **seen: Any) -> dict[str, Any]:
    """One measurement: ``name, method, micro_batch, allocated, predicted, seconds, outcome``."""
    allocated = seen.get("allocated", GIB)
    outcome = seen.get("outcome", "ok")
    instants = {"forward": allocated // 2, "optimizer_step": allocated}
    samples = {
        "gpu": {"name": "NVIDIA H200", "driver": "570", "memory": {"total": 4 * GIB}},
        "columns": {
            "seconds": [i / 10 for i in range(400)],
            "used_bytes": [GIB + i * 2**20 if i != 200 else 3 * GIB for i in range(400)],
        },
    }
    parts = {"matrix products": 0.6, "attention": 0.1}
    found = Measurement(
        outcome=outcome,
        device="cuda",
        config={
            "method": seen.get("method", "lora"),
            "engine": "torch",
            "micro_batch": seen.get("micro_batch", 1),
            "seq_len": 512,
            "grad_accum": 1,
            "gpus": 1,
        },
        model={"name": seen.get("name", "small")},
        instants=tuple(Instant(name=k, bytes=v) for k, v in instants.items()) if allocated else (),
        step_seconds=(seen.get("seconds", 1.0),) if outcome == "ok" else (),
        environment={"vram_plan": "0.1.0", "python": "3.12", "libraries": {"torch": "2.13.0"}},
        samples=samples,
        run={
            "id": f"{number:05d}",
            "key": str(number),
            "series": str(number),
            "created_utc": "2026-01-01T00:00:00Z",
            "job": {"model": seen.get("name", "small"), "options": {"seq_len": 512}},
        },
        plan={
            "allocated_bytes": seen.get("predicted", GIB),
            "components": {"weights": GIB // 2, "activations": GIB // 2},
            "instants": instants,
            "step": {"seconds": 0.7, "parts": parts},
            "error": None,
        },
    )
    return found.to_document()


def make_several(count: int = 24) -> list[dict[str, Any]]:
    """Runs of two methods and three batches, one of them out of memory."""
    methods = ("full", "lora")
    made = [
        make_run(
            number,
            method=methods[number % 2],
            micro_batch=1 + number % 3,
            allocated=GIB + number * 2**22,
            predicted=GIB + number * 2**22 + 2**20 * (number % 5),
            seconds=1 + number / 100,
        )
        for number in range(count)
    ]
    return [*made, make_run(count, outcome="oom", allocated=0, predicted=5 * GIB)]


@pytest.fixture
def run() -> Callable[..., dict[str, Any]]:
    """Makes one measurement."""
    return make_run


@pytest.fixture
def several() -> Callable[..., list[dict[str, Any]]]:
    """Makes measurements of two methods and three batches, the last one out of memory."""
    return make_several
