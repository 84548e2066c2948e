"""What DeepSpeed does not run."""

from __future__ import annotations

from collections.abc import Iterator

from vram_plan.estimator.config import TrainConfig

_CHECKED_LAST = frozenset({"bart", "marian"})
"""Models whose encoder blocks end with a norm, and in fp16 with a look for numbers that are not."""


def refused_zero(config: TrainConfig) -> Iterator[str]:
    """Optimizers on the host, and checkpoints that ZeRO 3's gathered weights break."""
    name = config.optimizer
    if name == "one-bit-adam" and (config.engine != "deepspeed" or config.zero != 0):
        yield "--optimizer one-bit-adam is DeepSpeed's and runs with --zero 0 only"
    on_host = config.offload in {"optimizer", "optimizer+params"} and config.engine == "deepspeed"
    if on_host and name not in {"adamw", "adamw-fused"}:
        yield (
            f"--optimizer {name} with --offload {config.offload}: DeepSpeedCPUAdam is the one that "
            "runs there; choose adamw"
        )
    if config.zero == 3 and config.gpus > 1:
        yield from _recomputed(config)


def _recomputed(config: TrainConfig) -> Iterator[str]:
    """Recomputation that meets other weights, or other operators, than the first pass did.

    A selective checkpoint's cache (torch 2.13.0 ``torch/utils/checkpoint.py``
    ``_CachedTorchDispatchMode``) counts operators, those of DeepSpeed 0.19.8's gathering too. The
    first pass reads AdaLoRA's weights outside their modules and gathers them one by one
    (``runtime/zero/parameter_offload.py`` ZeROOrderedDict); from then on they are gathered together
    with their module's, by other operators.

    ``torch.isfinite`` saves its argument, so recomputation does not stop early within the norm
    before it, and DeepSpeed frees that norm's frozen weights as it ends
    (``partitioned_param_coordinator.py`` release_sub_module), which the checkpoint then compares.
    """
    kind, family = config.checkpointing, config.model.model_type
    if kind == "selective" and config.method == "adalora":
        yield (
            "--zero 3 with --method adalora and --checkpointing selective: gathering AdaLoRA's "
            "weights upsets the checkpoint's cache; choose --checkpointing full"
        )
    half = config.precision == "fp16" and config.method != "full"
    if kind != "none" and half and family in _CHECKED_LAST:
        yield (
            f"--zero 3 with --checkpointing {kind} and --precision fp16: {family}'s checkpoints "
            "find frozen norms freed by DeepSpeed; choose --precision bf16 or --checkpointing none"
        )
