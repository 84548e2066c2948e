"""The catalogue of models, and what `--model` may say: size, name, config.json, folder, hub id."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.names import UnknownNameError, suggest
from vram_plan.profiles.sizes import size_class, size_classes

__all__ = ["CatalogueEntry", "catalogue", "known_names", "raw_config", "resolve_model"]

_FOLDER = os.path.join(os.path.dirname(__file__), "data", "models")
_OWN_KEYS = ("aliases", "source", "parameters")
# TOML has no null: in these files a field that is null in the config.json is left out. For these
# the configuration classes tell the two apart, and null is what the published files say.
_NULLABLE = ("sliding_window", "q_lora_rank", "rotary_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One table of a file in `data/models`.

    Attributes:
        name: The hub id, ``meta-llama/Llama-2-7b-hf``.
        family: The file it is in.
        aliases: Other names for the same architecture.
        source: Where the figures were read.
        parameters: Published or counted number of parameters, tied weights counted once.
        config: The fields of its `config.json`.
    """

    name: str
    family: str
    aliases: tuple[str, ...]
    source: str
    parameters: int
    config: dict[str, Any] = field(hash=False, compare=False)

    def spec(self) -> ModelSpec:
        """The architecture."""
        from vram_plan.profiles.hf_config import from_hf_config

        return from_hf_config(self.config, name=self.name, source=self.source)


@cache
def _family(path: str) -> tuple[CatalogueEntry, ...]:
    import tomllib

    with open(path, "rb") as file:
        tables = tomllib.load(file)
    family = os.path.basename(path).removesuffix(".toml")
    return tuple(_entry(name, family, table) for name, table in tables.items())


def _entry(name: str, family: str, table: dict[str, Any]) -> CatalogueEntry:
    config = {key: value for key, value in table.items() if key not in _OWN_KEYS}
    return CatalogueEntry(
        name=name,
        family=family,
        aliases=tuple(table["aliases"]),
        source=table["source"],
        parameters=table["parameters"],
        config=dict.fromkeys(_NULLABLE) | config,
    )


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _files() -> list[str]:
    names = sorted(name for name in os.listdir(_FOLDER) if name.endswith(".toml"))
    return [os.path.join(_FOLDER, name) for name in names]


@cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """All models of the catalogue, by family and in the order of its files."""
    return tuple(entry for path in _files() for entry in _family(path))


def known_names() -> tuple[str, ...]:
    """Every name, alias and size that `resolve_model` takes without a file or the hub."""
    sizes = [one.size for one in size_classes()]
    return (*sizes, *(name for entry in catalogue() for name in (entry.name, *entry.aliases)))


def find_entry(text: str) -> CatalogueEntry | None:
    """The entry with this hub id or alias, upper and lower case alike; else with this last part.

    Only files that contain the text are parsed.
    """
    wanted = text.casefold()
    files = [path for path in _files() if wanted in _text(path).casefold()]
    entries = [entry for path in files for entry in _family(path)]
    for names in (_names, _last_parts):
        for entry in entries:
            if wanted in names(entry):
                return entry
    return None


def _names(entry: CatalogueEntry) -> list[str]:
    return [name.casefold() for name in (entry.name, *entry.aliases)]


def _last_parts(entry: CatalogueEntry) -> list[str]:
    return [name.rpartition("/")[2] for name in _names(entry)]


def raw_config(name: str) -> dict[str, Any]:
    """The fields of the `config.json` of a catalogue model.

    Raises:
        UnknownNameError: if the catalogue has no such model.
    """
    entry = find_entry(name)
    if entry is None:
        raise _unknown(name)
    return dict(entry.config)


def resolve_model(text: str) -> ModelSpec:
    """The model that ``--model`` means.

    In this order: a size class (``7b``), a name or alias of the catalogue, the path of a
    `config.json` or of a folder that holds one, a hub id (``organisation/name``).

    Raises:
        UnknownNameError: if it is none of them; the message names near ones.
        ValueError: if it is one of them and cannot be read.
    """
    wanted = text.strip()
    if not wanted:
        raise ValueError("--model is empty; give a size (7b), a name, a config.json or a hub id")
    spec = size_class(wanted)
    if spec is not None:
        return spec
    entry = find_entry(wanted)
    return entry.spec() if entry is not None else _from_outside(wanted)


def _from_outside(text: str) -> ModelSpec:
    from vram_plan.profiles.hf_config import from_hf_config, read_config
    from vram_plan.profiles.hub import fetch_config, is_hub_id

    if os.path.exists(text) or _looks_like_path(text):
        from pathlib import Path

        return from_hf_config(read_config(Path(text).expanduser()), name=text, source=text)
    if is_hub_id(text):
        try:
            raw = fetch_config(text)
        except ValueError as error:
            raise UnknownNameError(f"{error}{suggest(text, known_names())}") from None
        source = f"https://huggingface.co/{text}/blob/main/config.json"
        return from_hf_config(raw, name=text, source=source)
    raise _unknown(text)


def _looks_like_path(text: str) -> bool:
    return text.endswith(".json") or text.startswith((".", "~", os.sep)) or text.count(os.sep) > 1


def _unknown(text: str) -> UnknownNameError:
    near = suggest(text, known_names())
    return UnknownNameError(
        f"unknown model {text!r}{near or '; see `vram-plan models`'} "
        "(a size like 7b, a config.json, a folder or a hub id works too)"
    )
