"""The same training step on a real device, timed: random weights, random tokens, no tracing."""

import time
from functools import partial

import torch

from vram_plan.bench.trace.build import build_model, count_parameters, materialize
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.optimizers import load_libraries
from vram_plan.bench.trace.quantized import dora_on_quantized
from vram_plan.bench.trace.step import TrainingStep

__all__ = ["TimedRun", "calm_norms", "random_tokens", "random_values"]

#: transformers' usual ``initializer_range``.
_DEVIATION = 0.02
_CODES = 255


class _Silent:
    """Nobody watches a timed step."""

    def enter(self, phase: str) -> None:
        """A phase begins."""

    def mark(self, name: str) -> None:
        """An instant is reached."""


class TimedRun:
    """A model with its optimizer on a device, ready to run timed steps.

    Attributes:
        parameters: of the model, adapters included.
        trainable_parameters: those that get gradients.
    """

    def __init__(self, config: TraceConfig, device: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.device = torch.device(device)
        with self.device, dora_on_quantized():
            model = build_model(config)
            load_libraries()
            self.parameters = count_parameters(model)
            materialize(model, partial(random_values, device=self.device))
            calm_norms(model)
            self.step = TrainingStep(config, model, _Silent(), partial(torch.autocast, device))
            self.batch = random_tokens(config, model.config.get_text_config().vocab_size)
        self.trainable_parameters = sum(p.numel() for p in self.step.trainable)

    def seconds(self) -> float:
        """One optimizer step, until the device has finished it."""
        self._wait()
        started = time.perf_counter()
        self.step.run(self.batch)
        self._wait()
        return time.perf_counter() - started

    def loss(self) -> float:
        """The loss of the batch now."""
        with torch.no_grad(), self.device:
            return float(self.step.forward(self.batch).detach())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def random_values(
    shape: tuple[int, ...], dtype: torch.dtype, *, device: torch.device
) -> torch.Tensor:
    """A weight as transformers initializes it; codes of a quantized one."""
    made = torch.empty(shape, dtype=dtype, device=device)
    if dtype.is_floating_point:
        return made.normal_(0.0, _DEVIATION)
    return made.random_(0, _CODES if dtype is torch.uint8 else 127)


def calm_norms(model: torch.nn.Module) -> None:
    """Norms scale by one, so that losses are those of an untrained model."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "norm" in name.lower() and name.endswith("weight"):
            parameter.data.fill_(1.0)


def random_tokens(config: TraceConfig, vocabulary: int) -> dict[str, torch.Tensor]:
    """Random ids of fixed length, themselves the labels."""
    ids = torch.randint(0, vocabulary, (config.batch, config.seq))
    labels = ids
    if config.target_seq is not None:
        labels = torch.randint(0, vocabulary, (config.batch, config.target_seq))
    return {"input_ids": ids, "labels": labels}
