"""Stored runs in the schema of the measured rows, so that ``vram-plan validate`` judges them.

What a reader of the file could not know is left empty. Nothing personal is in a row: a model that
was given by a path appears by its last part.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, TextIO

from vram_plan.bench.runs.device import catalogue_name
from vram_plan.profiles.measured_row import ARCHITECTURE, COLUMNS

__all__ = ["row_of", "write_rows"]

_OUTCOMES = {"ok": "ok", "oom": "oom"}
_SAME = (
    "method",
    "adapter_dtype",
    "weights_dtype",
    "precision",
    "optimizer",
    "engine",
    "offload",
    "gpus",
    "gpus_per_node",
    "micro_batch",
    "seq_len",
    "grad_accum",
    "checkpointing",
    "attention",
    "loss",
)
"""Options that rows call by the same name."""


_SPARSE = (
    "num_experts",
    "experts_per_token",
    "moe_intermediate_size",
    "shared_intermediate_size",
)


def write_rows(documents: Iterable[Mapping[str, Any]], file: TextIO) -> int:
    """Write a header and a row for each run; how many."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    count = 0
    for document in documents:
        writer.writerow({name: _cell(value) for name, value in row_of(document).items()})
        count += 1
    return count


def row_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of one run; those that are not known are left out."""
    run, config, memory = document["run"], document["config"], document["memory"]
    model = PurePath(str(document["model"]["name"])).name
    quantized = config["quantization"] != "none"
    lora = "lora" in config["method"]
    row: dict[str, Any] = {
        "id": run["id"],
        "group": f"own/{model}",
        "source": "vram-plan bench",
        "model": model,
        **_shape(document["model"].get("shape") or {}),
        "trainable_params": document["model"]["trainable_parameters"],
        "lora_rank": config["lora_rank"] if lora else None,
        "lora_targets": config["lora_targets"] if lora else None,
        "quantization": config["quantization"] if quantized else None,
        "double_quant": config["double_quant"] if quantized else None,
        "zero_stage": config["zero"],
        "sharding": config["fsdp"] or None,
        "gpu": _gpu(document),
        "lengths": "fixed",
        "stack": _stack(document),
        "outcome": _OUTCOMES.get(document["outcome"], "failed"),
        "memory_rank": "only" if config["gpus"] == 1 else "rank0",
        "quality": "A",
        "notes": _notes(document),
        **{name: config[name] for name in _SAME},
        **_figures(document, memory),
    }
    return {name: value for name, value in row.items() if value is not None}


def _notes(document: Mapping[str, Any]) -> str:
    ranks = document["virtual_ranks"]
    virtual = f"; rank 0 of {ranks} on a fake process group" if ranks else ""
    return f"device {document['device']}{virtual}"


def _shape(shape: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture in the rows' words; experts where there are some."""
    found = {name: shape.get(theirs) for name, theirs in ARCHITECTURE.items()}
    if "is_gated_act" in shape:
        found["mlp"] = "gated" if shape["is_gated_act"] else "plain"
    return {name: value for name, value in found.items() if value or name not in _SPARSE}


def _figures(document: Mapping[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    if document["outcome"] != "ok":
        return {}
    seconds = document["step_seconds"]
    return {
        "allocated_peak_bytes": memory["allocated_bytes"],
        "reserved_peak_bytes": memory["reserved_bytes"],
        "device_used_bytes": memory["device_bytes"],
        "memory_unit": "B",
        "memory_resolution_bytes": 1,
        "step_seconds": statistics.median(seconds) if seconds else None,
        "speed_quality": "A" if seconds else None,
    }


def _gpu(document: Mapping[str, Any]) -> str | None:
    """The catalogue's name of the GPU, or NVML's where it has none."""
    facts = (document.get("samples") or {}).get("gpu")
    if not facts:
        return None
    product = str(facts["name"])
    return catalogue_name(product) or "-".join(product.lower().replace("nvidia", "").split())


def _stack(document: Mapping[str, Any]) -> str:
    libraries = document["environment"]["libraries"]
    return ";".join(f"{name}={version}" for name, version in libraries.items() if version)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value
