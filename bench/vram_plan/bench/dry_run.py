"""The dry run: trace the real step of a configuration and say what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vram_plan.bench.environment import environment, missing_libraries
from vram_plan.bench.instants import in_order, labels
from vram_plan.bench.measurement import Instant, Measurement
from vram_plan.bench.translate import model_fields, trace_config
from vram_plan.bench.workspaces import with_workspaces
from vram_plan.estimator.choices import BITSANDBYTES, WHOLE_MODEL
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import COMPONENTS, MODEL_STATES
from vram_plan.profiles.hf_config import from_hf_config
from vram_plan.profiles.model import ModelSpec

if TYPE_CHECKING:
    from vram_plan.bench.trace import Extended, Trace

__all__ = ["DryRun", "dry_run", "traced_model"]

Say = Callable[[str], None]
_INSTALL = "pip install 'vram-plan[bench]'"
_MOST_POINTS = 4000


class DryRun:
    """One configuration, and how to trace it.

    Attributes:
        config: the plan's resolved configuration.
        device: ``fake``, ``cpu`` or ``cuda``.
        whole: trace every layer, from loading on, instead of extending shallow traces.
        trace: the events of every layer, when they were traced.
        fields: of the model's `config.json`; those of its name, unless given.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        device: str = "fake",
        whole: bool = False,
        say: Say | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.fields = fields
        self.device = device
        self.whole = whole or device != "fake"
        self.trace: Trace | None = None
        self._say = say or (lambda text: None)
        self._seconds: dict[str, float] = {}

    def run(self) -> Measurement:
        """Trace it.

        Raises:
            ValueError: where this configuration cannot be traced at all; one line with the way
                out. What fails inside the libraries is an outcome, not an exception.
        """
        _require(_needed(self.config))
        fields = self.fields or model_fields(self.config.model)
        virtual = self.config.engine == "deepspeed"
        if virtual and self.device != "fake":
            raise ValueError(f"--device {self.device} with --zero: virtual ranks are fake")
        try:
            seen = self._virtual(fields) if virtual else self._traced(fields)
        except ValueError as error:
            raise _refusal(error) from None
        # What a library raises inside the step is what was seen of this configuration.
        except Exception as error:
            return self._failed(error)
        return with_workspaces(seen, self.config)

    def _traced(self, fields: Mapping[str, Any]) -> Measurement:
        prepared = replace(trace_config(self.config, fields), device=self.device)
        self._import()
        from vram_plan.bench.trace import trace_deep, trace_step

        if not self.whole:
            self._say("tracing a few layers")
            return self._extended(trace_deep(prepared))
        self._say("tracing every layer")
        fake = self.device == "fake"
        self.trace = trace_step(replace(prepared, history=fake))
        found = self._measured(self.trace.parameters, self.trace.trainable_parameters)
        return replace(
            found,
            instants=self.trace.instants,
            states_bytes=_states(self.trace),
            reserved_bytes=_reserved(self.trace) if fake else None,
            host_bytes=self.trace.host_bytes,
            timeline=_timeline(self.trace),
            seconds=self._seconds | {"trace": self.trace.seconds},
            notes=(*found.notes, *self.trace.notes),
            outcome="ok",
        )

    def _extended(self, seen: Extended) -> Measurement:
        found = self._measured(seen.parameters, seen.trainable_parameters)
        return replace(
            found,
            instants=in_order(seen.instants),
            states_bytes=_resident(seen.start_components, seen.instants),
            host_bytes=seen.host_bytes,
            extended_from=seen.extended_from or None,
            seconds=self._seconds | {"trace": seen.seconds},
            notes=(*found.notes, *seen.notes),
            outcome="ok",
        )

    def _virtual(self, fields: Mapping[str, Any]) -> Measurement:
        from vram_plan.bench.virtual import trace_zero

        self._say("running DeepSpeed's engine on virtual ranks")
        seen = trace_zero(self.config, fields)
        self.trace = seen.trace
        found = self._measured(seen.parameters, seen.trainable_parameters)
        return replace(
            found,
            instants=in_order(seen.instants),
            states_bytes=_states(seen.trace),
            host_bytes=seen.host_bytes,
            extended_from=seen.extended_from,
            seconds=seen.seconds,
            timeline=_timeline(seen.trace),
            notes=(*found.notes, *seen.notes, f"rank {seen.seen[0].rank} is the fullest"),
            outcome="ok",
        )

    def _import(self) -> None:
        """Import what the trace will need, so that its own time stands apart."""
        started = time.perf_counter()
        self._say("importing torch and transformers")
        for name in (*_needed(self.config), "vram_plan.bench.trace.fake"):
            import_module(name)
        self._seconds["imports"] = time.perf_counter() - started

    def _measured(self, parameters: int, trainable: int) -> Measurement:
        """What is known whatever the device; its outcome is set with what was seen."""
        model = self.config.model
        return Measurement(
            outcome="error",
            device=self.device,
            virtual_ranks=self.config.gpus if self.config.gpus > 1 else None,
            config=self.config.options(),
            model={
                "name": model.name,
                "parameters": parameters,
                "trainable_parameters": trainable,
                "source": model.source,
            },
            layers=model.num_hidden_layers,
            seconds=self._seconds,
            environment=environment(),
            notes=self._notes(parameters),
        )

    def _notes(self, parameters: int) -> tuple[str, ...]:
        model = self.config.model
        if model.nominal_parameters in (None, parameters) or not parameters:
            return ()
        return (
            f"{model.name} is traced, and planned here, as the Llama of its shape with "
            f"{parameters:,} parameters",
        )

    def _failed(self, error: Exception) -> Measurement:
        text = " ".join(str(error).split())[:500] or "no message"
        outcome = getattr(error, "outcome", "error")
        message = f"{type(error).__name__}: {text}"
        return replace(self._measured(0, 0), outcome=outcome, error=message)


def traced_model(model: ModelSpec) -> ModelSpec:
    """What a trace runs: the model itself, or for a size class the Llama that lends its shape."""
    if model.nominal_parameters is None:
        return model
    return from_hf_config(
        model_fields(model), name=f"{model.name} (the Llama of its shape)", source=model.source
    )


def dry_run(
    config: TrainConfig, *, device: str = "fake", whole: bool = False, say: Say | None = None
) -> Measurement:
    """Trace the real training step of a configuration; nothing is allocated on ``fake``."""
    return DryRun(config, device=device, whole=whole, say=say).run()


def _refusal(error: ValueError) -> ValueError:
    """An error of our own as it is; a library's with the library's name before it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = last.tb_frame.f_globals.get("__name__", "") if last is not None else ""
    package = module.partition(".")[0]
    if package == "vram_plan":
        return error
    text = " ".join(str(error).split())[:400]
    return ValueError(f"dry-run: {package} refuses this configuration: {text}")


def _needed(config: TrainConfig) -> tuple[str, ...]:
    """Libraries whose code the step runs."""
    needed = ["torch", "transformers"]
    if config.method not in WHOLE_MODEL:
        needed.append("peft")
    if config.quantization in BITSANDBYTES or "8bit" in config.optimizer:
        needed.append("bitsandbytes")
    if config.engine == "deepspeed":
        needed.append("deepspeed")
    return tuple(needed)


def _require(names: tuple[str, ...]) -> None:
    missing = missing_libraries(names)
    if missing:
        raise ValueError(f"dry-run needs {', '.join(missing)}, not installed here: {_INSTALL}")


def _reserved(trace: Trace) -> int:
    """The caching allocator's peak over the whole run, loading and the first step included."""
    from vram_plan.bench.allocator import replay_trace

    return replay_trace(trace).reserved_peak_bytes


def _states(trace: Trace) -> dict[str, int]:
    sums: dict[str, int] = {}
    for block in trace.start_blocks:
        sums[block.component] = sums.get(block.component, 0) + block.bytes
    return _resident(sums, trace.instants)


def _resident(start: Mapping[str, int], instants: tuple[Instant, ...]) -> dict[str, int]:
    """Model states: what lives when the step begins, and the gradients when they are complete."""
    if start.get(""):
        return {}  # a device that does not tell what its memory is for
    most = max((i.components or {}).get("gradients", 0) for i in instants)
    sums = {**start, "gradients": most}
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
