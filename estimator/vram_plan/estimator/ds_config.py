"""A DeepSpeed configuration file: the stage, the sizes of its buffers and the options it implies.

Names and defaults: DeepSpeed 0.19.8 ``deepspeed/runtime/config.py``, ``zero/config.py`` and
``zero/offload_config.py``. "auto" is transformers': what it stands for is left open, except the
three sizes that it derives from the model's width (transformers 5.23.0
``integrations/deepspeed.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vram_plan.estimator.config import ZeroSizes

LARGEST_FILE_BYTES = 2**20
AUTO = "auto"
_KEYS = (
    "zero_optimization",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "fp16",
    "optimizer",
    "data_types",
)
_BY_WIDTH: dict[str, Callable[[int], int]] = {
    "reduce_bucket_size": lambda h: h * h,
    "stage3_prefetch_bucket_size": lambda h: int(0.9 * h * h),
    "stage3_param_persistence_threshold": lambda h: 10 * h,
}
_FLAGS = ("overlap_comm", "contiguous_gradients")
_ELEMENTS = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "sub_group_size",
)
MODELLED = {*_FLAGS, *_ELEMENTS, "stage", "offload_optimizer", "offload_param"}
UNMODELLED = (
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_gradients",
    "zero_quantized_nontrainable_weights",
    "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential",
    "zenflow",
)
"""Switches that change memory and are not planned: the output says so."""
_OPTIMIZERS = {
    "adam": "adamw",
    "adamw": "adamw",
    "onebitadam": "one-bit-adam",
    "lion": "lion",
    "sgd": "sgd",
    "muon": "muon",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DsConfig:
    """What a file says.

    Attributes:
        stage: ZeRO stage.
        sizes: buffer sizes; those in ``auto`` are DeepSpeed's defaults until ``for_model``.
        auto: sizes that transformers derives from the model's width.
        options: options the file implies, by command-line name with underscores; what it leaves
            open ("auto") is missing.
        notes: sentences for the output about what is not planned.
    """

    stage: int
    sizes: ZeroSizes
    auto: frozenset[str]
    options: Mapping[str, Any]
    notes: tuple[str, ...]

    def for_model(self, hidden_size: int) -> DsConfig:
        """The same with "auto" sizes filled in: h², 0.9 h² and 10 h."""
        filled: dict[str, Any] = {name: _BY_WIDTH[name](hidden_size) for name in self.auto}
        return replace(self, sizes=replace(self.sizes, **filled), auto=frozenset())


def read_ds_config(path: str | Path) -> DsConfig:
    """Read a DeepSpeed JSON file.

    Raises:
        ValueError: one line that names the file, the key and the way out.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8-sig") if size <= LARGEST_FILE_BYTES else ""
    except OSError as error:
        raise ValueError(f"--ds-config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--ds-config {path}: not a text file; give a DeepSpeed JSON") from None
    if size > LARGEST_FILE_BYTES:
        raise ValueError(f"--ds-config {path}: {size:,} bytes are too many for a DeepSpeed JSON")
    try:
        raw = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"--ds-config {path}: nested too deeply for a DeepSpeed JSON") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--ds-config {path}: not valid JSON: {reason}") from None
    return parse_ds_config(raw, name=f"--ds-config {path}")


def parse_ds_config(raw: object, *, name: str = "--ds-config") -> DsConfig:
    """The same from parsed JSON; ``name`` begins every message.

    Raises:
        ValueError: one line that names the key and the way out.
    """
    if not isinstance(raw, dict) or not any(key in raw for key in _KEYS):
        raise ValueError(
            f"{name}: not a DeepSpeed configuration: a JSON object with one of "
            f"{', '.join(_KEYS[:3])}, … is expected"
        )
    keys = _Keys(raw, name)
    zero = keys.section("zero_optimization")
    stage = zero.whole("stage", 0)
    if stage is None or stage > 3:
        raise ValueError(f"{name}: zero_optimization.stage must be 0, 1, 2 or 3")
    options = _precision(keys) | _data(keys) | _optimizer(keys)
    sizes, auto = _sizes(zero, stage)
    offload, wanted = _offload(zero, stage)
    accumulated = _accumulated(keys)
    sizes = replace(sizes, grad_accum_bytes=accumulated, **wanted)
    notes = tuple(
        f"DeepSpeed file: {key} is not planned" for key in UNMODELLED if zero.values.get(key)
    )
    return DsConfig(stage=stage, sizes=sizes, auto=auto, options=options | offload, notes=notes)


@dataclass(frozen=True, slots=True)
class _Keys:
    """One object of the file; ``prefix`` begins the messages."""

    values: dict[str, Any]
    prefix: str

    def section(self, key: str) -> _Keys:
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object", value)
        dot = ": " if self.prefix.startswith("--") and ": " not in self.prefix else "."
        return _Keys(value, f"{self.prefix}{dot}{key}")

    def whole(self, key: str, default: int | None) -> int | None:
        """A whole number of at least 0; None where the file says "auto"."""
        value = self.values.get(key, default)
        if value == AUTO:
            return None
        whole = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is None or not whole or not 0 <= value < 2**63 or value != int(value):
            raise self.wrong(key, 'a whole number or "auto"', value)
        return int(value)

    def flag(self, key: str, default: bool | None) -> bool | None:
        """True, false, or None where the file leaves it open."""
        value = self.values.get(key, default)
        if value is None or value == AUTO:
            return None
        if not isinstance(value, bool):
            raise self.wrong(key, 'true, false or "auto"', value)
        return value

    def word(self, key: str, known: tuple[str, ...], default: str) -> str:
        """One of the words an option has."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.wrong(key, f"one of {', '.join(known)}", value)
        return value

    def wrong(self, key: str, expected: str, value: object) -> ValueError:
        """The error for a value that is none."""
        dot = ": " if self.prefix.startswith("--") and ": " not in self.prefix else "."
        shown = json.dumps(value, default=str)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        return ValueError(f"{self.prefix}{dot}{key} must be {expected}, got {shown}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """DeepSpeed refuses a key that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _precision(keys: _Keys) -> dict[str, Any]:
    states = {word: keys.section(word).flag("enabled", False) for word in ("bf16", "fp16")}
    if all(states.values()):
        raise ValueError(f"{keys.prefix}: bf16 and fp16 are both enabled; choose one")
    for word, enabled in states.items():
        if enabled:
            return {"precision": word}
    return {} if None in states.values() else {"precision": "fp32"}


def _data(keys: _Keys) -> dict[str, Any]:
    names = {
        "micro_batch": "train_micro_batch_size_per_gpu",
        "grad_accum": "gradient_accumulation_steps",
    }
    found = {}
    for option, key in names.items():
        value = keys.whole(key, None) if key in keys.values else None
        if value is not None:
            found[option] = value
    return found


def _optimizer(keys: _Keys) -> dict[str, Any]:
    kind = keys.section("optimizer").values.get("type")
    if not isinstance(kind, str):
        return {}
    known = _OPTIMIZERS.get(kind.lower())
    return {"optimizer": known} if known else {}


def _sizes(zero: _Keys, stage: int) -> tuple[ZeroSizes, frozenset[str]]:
    values: dict[str, Any] = {}
    auto = set()
    defaults = {field.name: field.default for field in fields(ZeroSizes)}
    for key in _ELEMENTS:
        size = zero.whole(key, int(str(defaults[key])))
        if size is not None:
            values[key] = size
        elif key in _BY_WIDTH:
            auto.add(key)
    values["overlap_comm"] = zero.flag("overlap_comm", None)
    if values["overlap_comm"] is None:
        values["overlap_comm"] = stage == 3
    contiguous = zero.flag("contiguous_gradients", True)
    values["contiguous_gradients"] = contiguous is not False
    if values.get("reduce_bucket_size") == 0:
        raise zero.wrong("reduce_bucket_size", "more than 0", 0)
    return ZeroSizes(**values), frozenset(auto)


def _offload(zero: _Keys, stage: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and sizes of ``offload_optimizer`` and ``offload_param``."""
    devices = ("none", "cpu", "nvme")
    optimizer, weights = zero.section("offload_optimizer"), zero.section("offload_param")
    states = optimizer.word("device", devices, "cpu" if zero.flag("cpu_offload", False) else "none")
    params = weights.word("device", devices, "none")
    if states == params == "none":
        return {}, {}
    if stage == 0 or (params != "none" and stage != 3):
        needed = "stage 3" if params != "none" else "stage 1, 2 or 3"
        raise ValueError(f"{zero.prefix}: offloading at stage {stage} needs {needed}")
    if states == "none":
        raise ValueError(
            f"{zero.prefix}.offload_param without offload_optimizer is not planned; offload both"
        )
    sizes = {
        "optimizer_buffer_count": optimizer.whole("buffer_count", 4) or 4,
        "param_buffer_count": weights.whole("buffer_count", 5) or 5,
        "param_buffer_size": weights.whole("buffer_size", 100_000_000) or 100_000_000,
        "max_in_cpu": weights.whole("max_in_cpu", 1_000_000_000) or 0,
        "pin_memory": optimizer.flag("pin_memory", True) is not False,
        "offload_param_device": params if params not in {"none", states} else "",
    }
    offload = "optimizer" if params == "none" else "optimizer+params"
    return {"offload": offload, "offload_device": states}, sizes


def _accumulated(keys: _Keys) -> int:
    """Bytes of ``data_types.grad_accum_dtype``, 0 where it is the weights' own."""
    known = {"fp32": 4, "float32": 4, "fp16": 2, "float16": 2, "bf16": 2, "bfloat16": 2}
    value = keys.section("data_types").values.get("grad_accum_dtype")
    if value is None or value == AUTO:
        return 0
    if value not in known:
        raise keys.section("data_types").wrong("grad_accum_dtype", "fp32, fp16 or bf16", value)
    return known[value]
