"""One process of a run, from the process group to what was measured."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from vram_plan.bench.engines.memory import memory_of
from vram_plan.bench.engines.place import Place, joined
from vram_plan.bench.engines.prepare import prepare
from vram_plan.bench.engines.stepper import Stepper
from vram_plan.bench.runs.job import Job
from vram_plan.bench.trace.quantized import dora_on_quantized
from vram_plan.bench.trace.quiet import without_library_noise
from vram_plan.estimator.config import TrainConfig

__all__ = ["run_rank"]

#: The second step is the first with optimizer states.
_WATCHED = 2
Say = Callable[..., None]


def run_rank(job: Job, config: TrainConfig, say: Say) -> dict[str, Any]:
    """Run the job in this process, which is one of its ranks; what it measured.

    Args:
        job: what to run.
        config: its resolved configuration.
        say: is told the stages.

    Raises:
        ValueError: what cannot be run, and the way out.
    """
    with ExitStack() as stack:
        stack.enter_context(without_library_noise())
        stack.enter_context(dora_on_quantized())
        alone = config.engine == "torch"
        place = stack.enter_context(joined(job.device, virtual=job.virtual, alone=alone))
        return _Rank(job, config, place, say).measured()


class _Rank:
    """A rank at work."""

    def __init__(self, job: Job, config: TrainConfig, place: Place, say: Say) -> None:
        self.job, self.config, self.place, self.say = job, config, place, say

    def measured(self) -> dict[str, Any]:
        """What the loop took.

        Virtual ranks have no time and no loss: nothing is sent, and what comes back is of no
        matter.
        """
        memory = memory_of(self.job.device)
        memory.start()
        ready = prepare(self.job, self.config, memory.relay, self.place)
        loop = ready.loop
        timed = 0 if self.place.virtual else self.job.warmup_steps + self.job.steps
        watched = max(loop.settling + 1, _WATCHED)
        stepper = Stepper(memory, self.place, self.say, watched=watched, timed=timed)
        loop.train(stepper, ready.batches)
        loop.check_stepped(stepper.total)
        found = memory.found() | ready.about | {"states": loop.states(), "cuda": _cuda()}
        if timed:
            found |= _times(stepper.seconds[watched:], self.job.warmup_steps)
            found["losses"] = [loop.first_loss, loop.loss(ready.batches[0])]
        return found


def _cuda() -> str | None:
    """The version of CUDA that PyTorch was built for; None on a CPU build."""
    found: str | None = torch.version.cuda
    return found


def _times(seconds: list[float], warmup: int) -> dict[str, list[float]]:
    return {"warmup_seconds": seconds[:warmup], "step_seconds": seconds[warmup:]}
