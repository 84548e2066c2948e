"""A job's model, data and loop, ready to step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vram_plan.bench.engines.batches import Batch, batches_of
from vram_plan.bench.engines.filling import fill
from vram_plan.bench.engines.memory import Relay
from vram_plan.bench.engines.place import Place
from vram_plan.bench.engines.stepper import Stepper
from vram_plan.bench.runs.examples import read_sequences
from vram_plan.bench.runs.job import Job
from vram_plan.bench.trace.build import build_model
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.timed import random_tokens
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.config import TrainConfig

__all__ = ["Loop", "Ready", "prepare"]


class Loop(Protocol):
    """Optimizer steps of some library."""

    @property
    def settling(self) -> int:
        """Steps before one is like the other."""

    @property
    def trainable_parameters(self) -> int:
        """Those that get gradients, counted before they are split."""

    @property
    def first_loss(self) -> float | None:
        """Of the first micro-batch, before anything was learnt."""

    def train(self, stepper: Stepper, batches: Sequence[Batch]) -> None:
        """Take all steps, the batches again and again."""

    def loss(self, batch: Batch) -> float:
        """The loss of a batch now, nothing learnt."""

    def check_stepped(self, total: int) -> None:
        """Raise unless the optimizer did its work in so many steps."""

    def states(self) -> dict[str, int]:
        """Bytes of what lives all the time, by component; empty where the library hides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """All that a rank needs.

    Attributes:
        loop: takes the steps.
        batches: this rank's micro-batches, to be taken again and again.
        about: parameters, and what the data is.
    """

    loop: Loop
    batches: Sequence[Batch]
    about: dict[str, Any]


def prepare(job: Job, config: TrainConfig, relay: Relay, place: Place) -> Ready:
    """Build the model, give it values, and hand it to its loop.

    Raises:
        ValueError: what cannot be run, and the way out.
    """
    checkpoint = job.model if job.weights == "checkpoint" else None
    # Only here: samplers and DeepSpeed want what they make without a device on the host.
    with place.torch_device:
        if config.engine == "deepspeed":
            step, model, make = _deepspeed(job, config, relay, place)
        else:
            step = trace_config(config, job.fields())
            model = build_model(step)
            make = _plain(job, step, relay, place)
        parameters = fill(model, place.torch_device, job.seed, checkpoint)
        batches, data = _batches(job, step, model, place)
    relay.follow(model, step.loss)
    loop = make(model)
    about = {
        "parameters": parameters,
        "trainable_parameters": loop.trainable_parameters,
        "data": data,
    }
    return Ready(loop=loop, batches=batches, about=about)


def _plain(job: Job, step: TraceConfig, relay: Relay, place: Place) -> Any:
    if job.loop == "trainer":
        from vram_plan.bench.engines.trainer import TrainerLoop

        return lambda model: TrainerLoop(step, model, relay, place)
    from vram_plan.bench.engines.plain import PlainLoop

    return lambda model: PlainLoop(step, model, relay, place)


def _deepspeed(job: Job, config: TrainConfig, relay: Relay, place: Place) -> Any:
    from vram_plan.bench.engines.zero import ZeroLoop, prepare_deepspeed
    from vram_plan.bench.virtual.case import zero_case

    case = zero_case(config, job.fields())
    prepare_deepspeed(place, pinned=case.pinned)
    from vram_plan.bench.virtual.worker import zero_model

    if job.loop == "trainer":
        raise ValueError("loop trainer with engine deepspeed: choose loop plain")
    return case.step, zero_model(case), lambda model: ZeroLoop(case, model, relay, place)


def _batches(
    job: Job, step: TraceConfig, model: Any, place: Place
) -> tuple[list[Batch], dict[str, Any] | None]:
    """Random tokens of one batch, or a file's sequences."""
    vocabulary = model.config.get_text_config().vocab_size
    if job.data == "synthetic":
        return [random_tokens(step, vocabulary)], None
    if step.target_seq is not None:
        raise ValueError("data: files are for decoder-only models; choose data synthetic")
    sequences = read_sequences(
        Path(job.data),
        length=step.seq,
        packing=job.padding == "packing",
        vocabulary=vocabulary,
        tokenizer=job.tokenizer,
    )
    batches = batches_of(sequences, step, place.rank, place.ranks, place.torch_device)
    return batches, sequences.about()
