"""Several files and the command line made one configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vram_plan.app.exchange.document import load
from vram_plan.app.exchange.facts import Fact, Reading, Weight
from vram_plan.app.exchange.recognise import read
from vram_plan.app.exchange.settle import settle
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import resolve_model

_SETTLED_BY = {
    "mixed_precision": ("precision", "weights_dtype", "amp"),
    "model_dtype": ("precision", "weights_dtype", "amp"),
    "adapter_cast": ("adapter_dtype",),
    "activation_offloading": ("offload", "checkpointing"),
    "data_parallel": ("gpus",),
    "learning_layers": ("freeze_layers",),
}
"""Words of ``settle`` → options of the command line that decide instead."""
_FLAG_OF = {"mixed_precision": "precision", "model_dtype": "weights_dtype"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What files and the command line say together.

    Attributes:
        config: every option, resolved.
        warnings: keys that change memory and are not planned, each with its place.
        notes: keys that change nothing, once for each file.
    """

    config: TrainConfig
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def read_files(
    names: Iterable[str], model: str | None = None, options: Mapping[str, Any] | None = None
) -> Imported:
    """Plan configurations of other tools.

    Args:
        names: paths of their files, recognised by content.
        model: what ``--model`` says; None where the files name it.
        options: options of the command line, which win.

    Raises:
        ValueError: one line with the file, the line and the way out.
    """
    given = dict(options or {})
    readings = _readings(names, given)
    facts = merged(readings, given if model is None else {**given, "model": model})
    if model is None and "model" not in facts:
        files = ", ".join(reading.file for reading in readings)
        raise ValueError(f"--model is missing, and no file names one ({files})")
    spec = resolve_model(model if model is not None else str(facts["model"].value))
    config, warnings = configure(spec, facts, given)
    said = tuple(f"from {one.file} ({one.form})" for one in readings)
    return Imported(
        config=replace(config, assumptions=(*config.assumptions, *said)),
        warnings=(*(text for one in readings for text in one.warnings), *warnings),
        notes=tuple(_notes(readings)),
    )


def configure(
    model: ModelSpec, facts: Mapping[str, Fact], given: Mapping[str, Any]
) -> tuple[TrainConfig, tuple[str, ...]]:
    """The configuration that facts and options make of a model, and warnings."""
    settled, warnings = settle(model, dict(facts), given)
    return resolve(model, settled), warnings


def _readings(names: Iterable[str], given: Mapping[str, Any]) -> list[Reading]:
    """Each file once, and the files that they name."""
    found: dict[Path, Reading] = {}
    for name in names:
        found.setdefault(Path(name).resolve(), read(load(name)))
    decided = given.keys() & {"ds_config", "engine", "fsdp"}
    for reading in list(found.values()):
        for fact in reading.references if not decided else ():
            path = _referred(fact, found)
            if path is not None:
                found.setdefault(path.resolve(), read(load(str(path))))
    return list(found.values())


def _referred(fact: Fact, found: Mapping[Path, Reading]) -> Path | None:
    """The file that a file names, beside it or here; None where another DeepSpeed file is given."""
    for path in (Path(fact.file).parent / str(fact.value), Path(str(fact.value))):
        if path.is_file():
            return path
    if any("ds_config" in reading.facts for reading in found.values()):
        return None
    raise ValueError(f"{fact} names {fact.value}, which is not there; give it with --from too")


def merged(readings: Iterable[Reading], given: Mapping[str, Any]) -> dict[str, Fact]:
    """One fact for each option.

    Raises:
        ValueError: where two files differ about an option that the command line leaves open.
    """
    facts: dict[str, Fact] = {}
    for reading in readings:
        for option, fact in reading.facts.items():
            before = facts.get(option)
            if before is None or fact.weight > before.weight:
                facts[option] = fact
            elif fact.weight == before.weight >= Weight.STATED and fact.value != before.value:
                _differ(option, before, fact, given)
    _check_ranks(facts, given)
    return facts


def _differ(option: str, one: Fact, other: Fact, given: Mapping[str, Any]) -> None:
    deciding = _SETTLED_BY.get(option, (option,))
    if any(name in given for name in deciding):
        return
    if option == "model" and _last(one.value) == _last(other.value):
        return  # one names the hub, the other a folder
    flag = _FLAG_OF.get(option, deciding[0]).replace("_", "-")
    shown = [
        repr(fact.value) if len(repr(fact.value)) < 40 else "otherwise" for fact in (one, other)
    ]
    raise ValueError(
        f"the files differ: {one} says {shown[0]}, {other} says {shown[1]}; decide by --{flag}"
    )


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _check_ranks(facts: Mapping[str, Fact], given: Mapping[str, Any]) -> None:
    """DeepSpeed's batch sizes imply a number of ranks."""
    ranks, gpus = facts.get("data_parallel"), facts.get("gpus")
    if ranks is None or gpus is None or gpus.weight < Weight.STATED or "gpus" in given:
        return
    degree = 1
    for name in ("tp", "pp", "cp"):
        degree *= facts[name].value if name in facts else 1
    if ranks.value * degree != gpus.value:
        raise ValueError(
            f"the files differ: {ranks} means {ranks.value * degree} ranks, {gpus} says "
            f"{gpus.value}; decide by --gpus"
        )


def _notes(readings: Iterable[Reading]) -> Iterable[str]:
    for one in readings:
        if one.harmless:
            yield f"{one.file}: keys that change no memory: {', '.join(one.harmless)}"
        if one.unknown:
            yield f"{one.file}: keys that {one.form} is not known to have: {', '.join(one.unknown)}"
