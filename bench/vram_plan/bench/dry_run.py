"""The dry run: trace the real step of a configuration and say what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vram_plan.bench.environment import environment, missing_libraries
from vram_plan.bench.instants import instants_of, labels
from vram_plan.bench.measurement import Instant, Measurement
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import COMPONENTS, MODEL_STATES

if TYPE_CHECKING:
    from vram_plan.bench.trace import Extended, Trace, TraceConfig

__all__ = ["DryRun", "dry_run"]

Say = Callable[[str], None]
_INSTALL = "pip install 'vram-plan[bench]'"
#: Beyond so many layers two shallow traces are extended, unless the whole one is asked for.
_SHALLOW = 4
_MOST_POINTS = 4000


class DryRun:
    """One configuration, and how to trace it.

    Attributes:
        config: the plan's resolved configuration.
        device: ``fake``, ``cpu`` or ``cuda``.
        whole: trace every layer instead of extending shallow traces.
        say: is told what goes on.
        trace: the last trace of the whole depth, when there was one.
    """

    def __init__(
        self, config: TrainConfig, *, device: str = "fake", whole: bool = False, say: Say | None
    ) -> None:
        self.config = config
        self.device = device
        self.whole = whole or device != "fake"
        self.say = say or (lambda text: None)
        self.trace: Trace | None = None
        self._import_seconds = 0.0

    def run(self) -> Measurement:
        """Trace it.

        Raises:
            ValueError: where this configuration cannot be traced at all; one line with the way
                out. What fails inside the libraries is an outcome, not an exception.
        """
        _require_libraries(self.config)
        if self.config.engine == "deepspeed":
            return self._run_virtual()
        prepared = self._prepare()
        layers = self._layers(prepared)
        try:
            return self._seen(prepared, layers)
        except ValueError:
            raise
        # What a library raises inside the step is what was seen of this configuration.
        except Exception as error:
            return self._failed(error)

    def _prepare(self) -> TraceConfig:
        from vram_plan.bench.translate import trace_config

        started = time.perf_counter()
        self.say("importing torch and transformers")
        prepared = replace(trace_config(self.config), device=self.device)
        self._import()
        self._import_seconds = time.perf_counter() - started
        return prepared

    def _import(self) -> None:
        """Import what the trace will need, so that its own time stands apart."""
        for name in _needed(self.config):
            import_module(name)

    def _layers(self, prepared: TraceConfig) -> int:
        from vram_plan.bench.trace.build import model_config

        return int(model_config(prepared.config).get_text_config().num_hidden_layers)

    def _seen(self, prepared: TraceConfig, layers: int) -> Measurement:
        from vram_plan.bench.trace import trace_deep, trace_step

        if not self.whole and layers > _SHALLOW:
            self.say(f"tracing a few of {layers} layers")
            return self._measured(trace_deep(prepared), layers)
        self.say(f"tracing {layers} layers")
        self.trace = trace_step(prepared)
        return self._measured(self.trace, layers)

    def _measured(self, seen: Trace | Extended, layers: int) -> Measurement:
        trace = self.trace
        world = self.config.gpus if self.config.gpus > 1 else None
        return Measurement(
            outcome="ok",
            device=self.device,
            virtual_ranks=world,
            config=self.config.options(),
            model=self._model(seen.parameters, seen.trainable_parameters),
            instants=_instants(seen, trace),
            states_bytes=_states(trace) if trace else {},
            layers=layers,
            extended_from=None if trace else getattr(seen, "extended_from", None),
            seconds={"imports": self._import_seconds, "trace": seen.seconds},
            timeline=_timeline(trace) if trace else (),
            environment=environment(),
            notes=self._notes(seen.parameters),
        )

    def _notes(self, parameters: int) -> tuple[str, ...]:
        nominal = self.config.model.nominal_parameters
        if nominal is None or nominal == parameters:
            return ()
        return (
            f"{self.config.model.name} is traced as the Llama of its shape, which has "
            f"{parameters:,} parameters",
        )

    def _model(self, parameters: int, trainable: int) -> dict[str, Any]:
        model = self.config.model
        return {
            "name": model.name,
            "parameters": parameters,
            "trainable_parameters": trainable,
            "source": model.source,
        }

    def _failed(self, error: Exception) -> Measurement:
        text = " ".join(str(error).split()) or "no message"
        return Measurement(
            outcome="error",
            error=f"{type(error).__name__}: {text[:500]}",
            device=self.device,
            config=self.config.options(),
            model=self._model(0, 0),
            seconds={"imports": self._import_seconds},
            environment=environment(),
        )

    def _run_virtual(self) -> Measurement:
        raise ValueError("dry-run --zero: not traced yet")


def dry_run(
    config: TrainConfig, *, device: str = "fake", whole: bool = False, say: Say | None = None
) -> Measurement:
    """Trace the real training step of a configuration; nothing is allocated on ``fake``."""
    return DryRun(config, device=device, whole=whole, say=say).run()


def _needed(config: TrainConfig) -> tuple[str, ...]:
    """Libraries whose code the step runs."""
    needed = ["torch", "transformers"]
    if config.method not in {"full", "freeze", "bitfit"}:
        needed.append("peft")
    if config.quantization in {"int8", "nf4", "fp4"} or "8bit" in config.optimizer:
        needed.append("bitsandbytes")
    if config.engine == "deepspeed":
        needed.append("deepspeed")
    return tuple(needed)


def _require_libraries(config: TrainConfig) -> None:
    missing = missing_libraries(_needed(config))
    if missing:
        raise ValueError(f"dry-run needs {', '.join(missing)}, not installed here: {_INSTALL}")


def _instants(seen: Trace | Extended, trace: Trace | None) -> tuple[Instant, ...]:
    if trace is not None:
        return instants_of(trace.events, trace.start_blocks)
    return tuple(
        Instant(name=name, bytes=total, components=seen.components(name))
        for name, total in seen.phase_peaks.items()
    )


def _states(trace: Trace) -> dict[str, int]:
    """What lives all the time, and the gradients when they are complete."""
    sums: dict[str, int] = {}
    for block in trace.start_blocks:
        sums[block.component] = sums.get(block.component, 0) + block.bytes
    fullest = [i.components or {} for i in instants_of(trace.events, trace.start_blocks)]
    if sums.get(""):
        return {}
    sums["gradients"] = max(parts.get("gradients", 0) for parts in fullest)
    return {name: sums[name] for name in COMPONENTS if name in MODEL_STATES and sums.get(name)}


def _timeline(trace: Trace) -> tuple[tuple[str, int], ...]:
    """Live bytes after every event; thinned, every stretch keeping its largest."""
    names = labels(trace.events)
    stride = max(1, len(names) // _MOST_POINTS)
    points = []
    for start in range(0, len(names), stride):
        chunk = range(start, min(start + stride, len(names)))
        best = max(chunk, key=lambda index: trace.events[index].live)
        points.append((names[best], trace.events[best].live))
    return tuple(points)
