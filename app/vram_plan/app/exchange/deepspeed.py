"""DeepSpeed's JSON: `deepspeed/runtime/config.py` and `zero/config.py` of 0.19.8."""

from __future__ import annotations

import json
import re
from typing import Any

from vram_plan.app.exchange.document import Document
from vram_plan.app.exchange.facts import CannotSayError, Reading, Weight
from vram_plan.app.exchange.reader import Reader
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ds_config import MODELLED, UNMODELLED, DsConfig, parse_ds_config
from vram_plan.estimator.ds_json import deepspeed_json

FORM = "DeepSpeed JSON"
FILE = "ds_config.json"
_ZERO = "zero_optimization"
_SIZES = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_OFFLOADS = ("offload_optimizer", "offload_param")
_TYPES = {
    "adamw": "AdamW",
    "lion": "Lion",
    "sgd": "SGD",
    "muon": "Muon",
    "one-bit-adam": "OneBitAdam",
}
"""Optimizers that DeepSpeed makes itself (``runtime/engine.py`` ``_configure_basic_optimizer``)."""


def read(document: Document) -> Reading:
    """What a DeepSpeed file says.

    Raises:
        ValueError: one line with the file, the line and the way out.
    """
    reader = Reader(document, FORM, "deepspeed")
    found = parse(document.values, document)
    reader.state("ds_config", found, _ZERO)
    reader.state("zero", found.stage, _ZERO, "stage")
    reader.state("engine", "deepspeed", _ZERO)
    _state_options(reader, found)
    _mark_read(reader)
    return reader.finish()


def parse(raw: dict[str, Any], document: Document) -> DsConfig:
    """The estimator's own reading, with line numbers in its messages."""
    prefix = "--from"
    try:
        return parse_ds_config(raw, name=prefix)
    except ValueError as error:
        text = str(error).removeprefix(prefix).lstrip(": ")
        key = re.match(r"[\w.]+", text)
        path = tuple(key[0].split(".")) if key else ()
        raise ValueError(f"{document.name}:{document.line(path)}: {text}") from None


def _state_options(reader: Reader, found: DsConfig) -> None:
    keys = {
        "micro_batch": ("train_micro_batch_size_per_gpu",),
        "grad_accum": ("gradient_accumulation_steps",),
        "offload": (_ZERO, "offload_optimizer"),
        "offload_device": (_ZERO, "offload_optimizer"),
    }
    for option, path in keys.items():
        reader.state(option, found.options.get(option), *path)
    _state_precision(reader, found)
    _state_ranks(reader, found)
    kind = reader.text("optimizer", "type")
    if kind is not None:
        known = found.options.get("optimizer")
        if known is None:
            text = f"{kind} is not planned; the plan takes adamw, give --optimizer NAME"
            reader.warn(("optimizer", "type"), text)
        reader.state("optimizer", known, "optimizer", "type", weight=Weight.OVERRIDING)


def _state_precision(reader: Reader, found: DsConfig) -> None:
    """Neither section means fp32, unless the Trainer adds one (accelerate's DeepSpeedPlugin)."""
    precision = found.options.get("precision")
    if precision is None:
        return
    mixed = "no" if precision == "fp32" else precision
    named = [key for key in ("bf16", "fp16") if reader.section(key)]
    on = next((key for key in named if reader.get(key, "enabled") is True), None)
    if on:
        reader.state("mixed_precision", mixed, on, "enabled")
    elif named:
        reader.state("mixed_precision", mixed, named[0], "enabled", weight=Weight.OFF)
    else:
        reader.imply("mixed_precision", mixed, "bf16")


def _state_ranks(reader: Reader, found: DsConfig) -> None:
    """Ranks from train_batch_size = micro-batch · accumulation · ranks, where all are numbers."""
    total = reader.whole("train_batch_size")
    micro, steps = found.options.get("micro_batch"), found.options.get("grad_accum")
    if total is None or micro is None or steps is None:
        return
    ranks, rest = divmod(total, micro * steps)
    if rest or not ranks:
        problem = f"{total} is not micro-batch {micro} · accumulation {steps} · ranks"
        raise reader.document.wrong(("train_batch_size",), problem)
    reader.state("data_parallel", ranks, "train_batch_size")


def _mark_read(reader: Reader) -> None:
    """Keys that the estimator's reading knows, and those it names as not planned."""
    for key in MODELLED:
        reader.get(_ZERO, key)
    for key in UNMODELLED:
        if reader.get(_ZERO, key):
            reader.warn((_ZERO, key), "changes memory and is not planned")
    for section in _OFFLOADS:
        for key in ("device", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory"):
            reader.get(_ZERO, section, key)
    for key in ("train_batch_size", *_SIZES):
        reader.get(key)
    for key in ("bf16", "fp16"):
        reader.get(key, "enabled")
    reader.get("data_types", "grad_accum_dtype")
    reader.get(_ZERO, "cpu_offload")


def write(config: TrainConfig) -> str:
    """The file for a configuration.

    Raises:
        CannotSayError: for an engine that is not DeepSpeed's.
    """
    if config.engine != "deepspeed":
        raise CannotSayError(f"{FORM} has no --engine {config.engine}")
    for name in ("tp", "pp", "cp", "ep"):
        if getattr(config, name) > 1:
            raise CannotSayError(f"{FORM} has no --{name}")
    batch = config.micro_batch * config.grad_accum * config.data_parallel
    raw = {"train_batch_size": batch, **deepspeed_json(config)}
    if config.optimizer in _TYPES:
        # the learning rate is the Trainer's: transformers fills "auto" in
        raw["optimizer"] = {"type": _TYPES[config.optimizer], "params": {"lr": "auto"}}
    return json.dumps(raw, indent=2) + "\n"
