"""A model with values: random ones, or those of a checkpoint."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from vram_plan.bench.trace.build import count_parameters, materialize
from vram_plan.bench.trace.optimizers import load_libraries
from vram_plan.bench.trace.timed import calm_norms, random_values
from vram_plan.profiles.models import resolve_model

__all__ = ["checkpoint_folder", "fill", "load_checkpoint"]

_WRAPPERS = ("base_model.model.", "base_layer.", "modules_to_save.default.")


def fill(model: Any, device: torch.device, seed: int, checkpoint: str | None = None) -> int:
    """Give every weight of a model on ``meta`` a value; return the number of parameters.

    Args:
        model: built on ``meta``, adapters included.
        device: where the values are made.
        seed: of random values.
        checkpoint: a folder or hub id; what it does not hold (adapters) stays random.
    """
    torch.manual_seed(seed)
    load_libraries()
    parameters = count_parameters(model)
    materialize(model, partial(random_values, device=device))
    calm_norms(model)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint_folder(checkpoint))
    return parameters


def checkpoint_folder(name: str) -> Path:
    """The folder of a checkpoint: one that is here, or the hub's in the local cache.

    Raises:
        ValueError: if there is neither, with the command that fetches it.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hub_id = resolve_model(name).name
    try:
        # Fetching is no part of a run: it would count as loading.
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        way_out = f"fetch it first: hf download {hub_id}"
        raise ValueError(f"weights checkpoint: {hub_id} is not here; {way_out}") from None


def load_checkpoint(model: torch.nn.Module, folder: Path) -> int:
    """Copy a folder's safetensors into the weights of the same name; how many were found.

    Raises:
        ValueError: if the folder holds none, or weights of another shape.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"weights checkpoint: no *.safetensors in {folder.name}")
    wanted = {_plain(name): weight for name, weight in model.named_parameters()}
    found = 0
    for file in files:
        opener: Any = safe_open
        with opener(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  # no mapping
                if name in wanted:
                    _copy(name, wanted[name], stored.get_tensor(name))
                    found += 1
    if not found:
        raise ValueError(f"weights checkpoint: {folder.name} holds no weight of this model")
    return found


def _plain(name: str) -> str:
    """The library's name of a weight that PEFT has wrapped."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _copy(name: str, weight: torch.nn.Parameter, value: torch.Tensor) -> None:
    if weight.shape != value.shape:
        shapes = f"{tuple(value.shape)}, the model's {tuple(weight.shape)}"
        raise ValueError(f"weights checkpoint: {name} is {shapes}; is it quantized?")
    with torch.no_grad():
        weight.copy_(value)
