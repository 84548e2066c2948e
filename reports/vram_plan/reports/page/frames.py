"""Documents as pandas frames: one row a run, a component, a sample."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vram_plan.bench.runs.surroundings import capacity_of, surroundings_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["command_of", "components_frame", "label_of", "names_of", "parts_frame", "runs_frame"]

_TOLD = (
    *("method", "engine", "zero", "fsdp", "offload", "gpus", "quantization", "checkpointing"),
    *("attention", "loss", "optimizer", "micro_batch", "seq_len", "grad_accum"),
)
"""Options that tell two configurations apart for a person."""
_USUAL = {
    "engine": "torch",
    "zero": None,
    "fsdp": "",
    "offload": "none",
    "gpus": 1,
    "quantization": "none",
    "checkpointing": "none",
    "attention": "flash",
    "loss": "hf",
    "optimizer": "adamw",
    "micro_batch": 1,
    "grad_accum": 1,
}


_OF_A_RUN = (
    *("layers", "steps", "warmup_steps"),
    *("ranks", "loop", "data", "padding", "tokenizer", "weights"),
)
"""What ``bench run`` takes beside the plan's options, as a run's job names it."""


def runs_frame(documents: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row for each measurement or plan.

    Columns: ``run, label, model, method, engine, checkpointing, gpu, outcome, kind`` (text),
    ``predicted_bytes, measured_bytes, reserved_bytes, capacity_bytes`` (bytes), ``error``
    (predicted / measured − 1), ``seconds`` (median of an optimizer step), ``predicted_seconds``,
    ``tokens_per_second`` (all GPUs), ``usd_per_million_tokens``, ``command``. What is not known is
    missing, never 0.
    """
    import pandas as pd

    _, names = names_of(documents)
    rows = [_run(one) | {"label": name} for one, name in zip(documents, names, strict=True)]
    return pd.DataFrame(rows)


def _run(document: Mapping[str, Any]) -> dict[str, Any]:
    config, memory = document["config"], document.get("memory") or {}
    measured = "outcome" in document
    plan = document.get("plan") or {} if measured else memory
    seen = memory.get("allocated_bytes") if measured else None
    predicted = plan.get("allocated_bytes")
    seconds = sorted(document.get("step_seconds") or [])
    middle = statistics.median(seconds) if seconds else None
    step = (plan.get("step") if measured else document.get("step")) or {}
    tokens = config.get("micro_batch", 1) * config.get("seq_len", 1) * config.get("grad_accum", 1)
    ranks = config.get("gpus", 1)
    return {
        "run": (document.get("run") or {}).get("id", ""),
        "model": document["model"]["name"],
        "method": config.get("method"),
        "engine": config.get("engine"),
        "checkpointing": config.get("checkpointing"),
        "gpu": surroundings_of(document).get("gpu") or config.get("gpu") or document.get("device"),
        "outcome": document.get("outcome", "planned"),
        "kind": _kind(document),
        "predicted_bytes": predicted,
        "measured_bytes": seen,
        "reserved_bytes": memory.get("reserved_bytes") if measured else None,
        "capacity_bytes": capacity_of(document),
        "error": predicted / seen - 1 if predicted and seen else None,
        "seconds": middle,
        "predicted_seconds": step.get("seconds"),
        "tokens_per_second": tokens * ranks / middle if middle else step.get("tokens_per_second"),
        "usd_per_million_tokens": (document.get("cost") or {}).get("usd_per_million_tokens"),
        "command": command_of(document),
    }


def _kind(document: Mapping[str, Any]) -> str:
    if "outcome" not in document:
        return "plan"
    return "dry run" if document["device"] == "fake" else "run"


def names_of(documents: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """What all configurations share, and a name for each of what they do not."""
    every = [_parts(document) for document in documents]
    shared = set.intersection(*map(set, every)) if len(set(every)) > 1 else set()
    common = " · ".join(part for part in every[0] if part in shared) if every else ""
    names = [" · ".join(part for part in parts if part not in shared) for parts in every]
    return common, [name or "the same" for name in names]


def label_of(document: Mapping[str, Any]) -> str:
    """A configuration in a line: the model, and what is not as usual."""
    return " · ".join(_parts(document))


def _parts(document: Mapping[str, Any]) -> tuple[str, ...]:
    config = document["config"]
    parts = [str(document["model"]["name"]).rsplit("/", 1)[-1]]
    for name in _TOLD:
        value = config.get(name)
        if name in ("method", "seq_len"):
            parts.append(str(value) if name == "method" else f"{value} tokens")
        elif value != _USUAL.get(name) and value is not None:
            parts.append(f"{name.replace('_', '-')} {value}")
    return tuple(parts)


def command_of(document: Mapping[str, Any]) -> str:
    """The command that makes the run again; empty where the document does not say."""
    job = (document.get("run") or {}).get("job") or {}
    if "model" not in job:
        return ""
    words = ["vram-plan", "bench", "run", "--model", str(job["model"])]
    if document.get("device") in ("cpu", "cuda"):
        words += ["--device", str(document["device"])]
    for name in _OF_A_RUN:
        if job.get(name):
            words += [f"--{name.replace('_', '-')}", str(job[name])]
    for name, value in (job.get("options") or {}).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, ",".join(value) if isinstance(value, list) else str(value)]
    return shlex.join(words)


def components_frame(documents: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Bytes at the peak: columns ``label, side`` (predicted or measured)``, component, bytes``."""
    import pandas as pd

    rows = []
    for document, name in zip(documents, names_of(documents)[1], strict=True):
        measured = "outcome" in document
        memory = document.get("memory") or {}
        plan = (document.get("plan") or {}) if measured else memory
        sides = {"predicted": plan.get("components")}
        if measured:
            sides["measured"] = memory.get("components") or _whole(memory)
        for side, components in sides.items():
            for component, size in (components or {}).items():
                if size:
                    rows.append(
                        {"label": name, "side": side, "component": component, "bytes": size}
                    )
    return pd.DataFrame(rows, columns=["label", "side", "component", "bytes"])


def _whole(memory: Mapping[str, Any]) -> dict[str, int] | None:
    """A device that cannot tell components apart gives one."""
    total = memory.get("allocated_bytes")
    return {"measured as a whole": total} if total else None


def parts_frame(documents: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Predicted parts of a step: columns ``label, part, seconds``."""
    import pandas as pd

    rows = []
    for document, name in zip(documents, names_of(documents)[1], strict=True):
        plan = document.get("plan") if "outcome" in document else document
        step = (plan or {}).get("step") or {}
        for part, seconds in (step.get("parts") or {}).items():
            if seconds:
                rows.append({"label": name, "part": part, "seconds": seconds})
    return pd.DataFrame(rows, columns=["label", "part", "seconds"])
