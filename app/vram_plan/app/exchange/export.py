"""Writing what a configuration needs to be run, and saying what the files cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from vram_plan.app.exchange import (
    accelerate,
    axolotl,
    deepspeed,
    launch,
    llama_factory,
    model_arguments,
    peft_config,
    training_arguments,
)
from vram_plan.app.exchange.document import parsed
from vram_plan.app.exchange.facts import CannotSayError, Fact, Reading
from vram_plan.app.exchange.idle import idle
from vram_plan.app.exchange.merge import configure, merged
from vram_plan.app.exchange.recognise import read
from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig

_QUIET = ("model", "assumptions")
_ALONE: tuple[tuple[str, tuple[ModuleType, ...]], ...] = (
    ("transformers", (training_arguments, model_arguments, peft_config, accelerate, deepspeed)),
    ("axolotl", (axolotl, deepspeed)),
    ("LLaMA-Factory", (llama_factory, accelerate, deepspeed)),
)
"""Tool → the files that make a run of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What an export wrote.

    Attributes:
        files: names in the folder.
        notes: what is not written or not said, each named.
        unsaid: tool → options that its files do not say, with the plan's value.
    """

    files: tuple[str, ...]
    notes: tuple[str, ...]
    unsaid: Mapping[str, Mapping[str, Any]]


def export_plan(config: TrainConfig, directory: str | Path, *, force: bool = False) -> Written:
    """Write every file that a run of ``config`` needs.

    Args:
        config: every option, resolved.
        directory: a folder, made where it is missing.
        force: write into one that is not empty; files of the same names are replaced.

    Raises:
        ValueError: a folder that is not empty, or a configuration that no format can say.
    """
    folder = Path(directory)
    check_folder(folder, force=force)
    texts, notes = texts_of(config)
    readings = {name: read(parsed(name, text)) for name, text in texts.items()}
    unsaid = {
        tool: unsaid_by(config, [readings[one.FILE] for one in modules if one.FILE in readings])
        for tool, modules in _ALONE
        if modules[0].FILE in readings
    }
    for tool, left in unsaid.items():
        shown = _shown({name: left[name] for name in left.keys() - idle(config)}, config)
        notes += [f"{tool}: not said: {shown}"] if shown else []
    texts |= _launcher(config, tuple(texts), unsaid)
    if config.model.nominal_parameters is not None:
        notes.append(
            f"{config.model.name} is a size, no checkpoint: put a model's name in its place"
        )
    stale = sorted(set(_names()) - set(texts)) if force else []
    notes += [
        f"{name} is from before and no part of this" for name in stale if (folder / name).exists()
    ]
    _write(folder, texts)
    return Written(files=tuple(texts), notes=tuple(notes), unsaid=unsaid)


def _names() -> Iterator[str]:
    yield from (module.FILE for _, modules in _ALONE for module in modules)


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / launch.FILE).chmod(0o755)
    except OSError as error:
        raise ValueError(f"--export {folder}: {error.strerror or error}") from None


def check_folder(directory: str | Path, *, force: bool) -> None:
    """Refuse a folder that holds files, unless they may be replaced.

    Raises:
        ValueError: one line with the way out.
    """
    folder = Path(directory)
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--export {folder}: a file; name a folder")
        if not force and folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"--export {folder}: not empty; name another folder or add --force")
    except OSError as error:
        raise ValueError(f"--export {folder}: {error.strerror or error}") from None


def texts_of(config: TrainConfig) -> tuple[dict[str, str], list[str]]:
    """File → text for what the formats can say, and a sentence for each that cannot.

    Raises:
        ValueError: where none of the tools can run the configuration.
    """
    texts: dict[str, str] = {}
    notes = []
    for tool, modules in _ALONE:
        found = {}
        try:
            for module in modules:
                if _needed(module, config):
                    found[module.FILE] = module.write(config)
        except CannotSayError as reason:
            notes.append(f"{tool}: not written: {reason}")
            continue
        texts |= found
    if not texts:
        raise ValueError(f"--export: {'; '.join(notes)}")
    return texts, notes


def _needed(module: ModuleType, config: TrainConfig) -> bool:
    if module is deepspeed:
        return config.engine == "deepspeed"
    if module is peft_config:
        return config.method not in choices.WHOLE_MODEL
    return True


def unsaid_by(config: TrainConfig, readings: list[Reading]) -> dict[str, Any]:
    """Options that files do not say: what differs when they are read again.

    They are taken as ``--from`` reads them; each option that comes out otherwise is given as
    the command line would give it, until the configuration is the same.
    """
    facts = merged(readings, {})
    unsaid, left = _start(config, facts)
    while left:
        name = next(iter(left))  # others often follow from the first: the engine from the GPUs
        after = _left(config, facts, unsaid | {name: left[name]})
        if after is None or name in after:
            unsaid |= left
            left = _left(config, facts, unsaid)
            break
        unsaid[name] = left[name]
        left = after
    return unsaid if left == {} else _all(config)


def _start(
    config: TrainConfig, facts: Mapping[str, Fact]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The fewest options under which the files make a configuration, and what then differs.

    Files that leave something out may contradict themselves: a mesh without its GPUs, flash
    attention where the 16-bit products are not said.
    """
    pairs = [(), ("gpus", "gpus_per_node"), *((one.name,) for one in fields(config))]
    for names in pairs:
        given = {name: getattr(config, name) for name in names if name not in _QUIET}
        left = _left(config, facts, given)
        if left is not None:
            return given, left
    return {}, None


def _left(
    config: TrainConfig, facts: Mapping[str, Fact], given: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What still differs under further options; None where they contradict the files."""
    try:
        again, _ = configure(config.model, facts, given)
    except ValueError:
        return None
    return {
        one.name: getattr(config, one.name)
        for one in fields(config)
        if one.name not in _QUIET and getattr(config, one.name) != getattr(again, one.name)
    }


def _all(config: TrainConfig) -> dict[str, Any]:
    """Every option that is not what it would be anyway, where nothing less will do."""
    return {
        one.name: getattr(config, one.name)
        for one in fields(config)
        if one.name not in _QUIET and getattr(config, one.name) != one.default
    }


def _shown(unsaid: Mapping[str, Any], config: TrainConfig) -> str:
    names = [one.name for one in fields(config) if one.name in unsaid]
    return ", ".join(_option(name, unsaid[name]) for name in names)


def _option(name: str, value: Any) -> str:
    """An option as the command line spells it."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    if name in {"gpu", "node"}:
        return f"{flag} {value.name}" if value else f"no {flag}"
    if isinstance(value, tuple):
        return f"{flag} {','.join(value)}" if value else f"no {flag}"
    if name == "zero_sizes":
        return "DeepSpeed's buffer sizes"
    return f"{flag} {value}" if value not in (None, "") else f"no {flag}"


def _launcher(
    config: TrainConfig, written: tuple[str, ...], unsaid: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """``launch.sh`` and ``train.py``, where transformers runs the configuration."""
    tool = next(iter(unsaid))
    first = next(modules for name, modules in _ALONE if name == tool)
    files = [module.FILE for module in first if module.FILE in written]
    words = ["vram-plan", *(f"--from {name}" for name in files)]
    words += [_option(name, value) for name, value in unsaid[tool].items()]
    again = " ".join(word for word in words if not word.startswith(("no ", "DeepSpeed")))
    texts = {launch.FILE: launch.write(config, written, again)}
    if tool == "transformers":
        texts[launch.SCRIPT] = launch.script()
    return texts
