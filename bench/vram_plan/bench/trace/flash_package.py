"""Let transformers find a flash_attn package whose functions only allocate."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from vram_plan.bench.trace.attention import flash_attn_func
from vram_plan.bench.trace.rules import never

__all__ = ["flash_attn_package"]


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


@contextmanager
def flash_attn_package() -> Iterator[None]:
    """A context in which ``attn_implementation="flash_attention_2"`` works."""
    from transformers import PreTrainedModel, modeling_flash_attention_utils

    def functions(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return flash_attn_func, _varlen, None, None, None

    for name, module in list(sys.modules.items()):
        # Some modules import this function only where they saw a flash_attn package.
        if name.startswith("transformers.models.") and hasattr(module, "is_flash_attn_available"):
            forward = modeling_flash_attention_utils._flash_attention_forward
            module.__dict__.setdefault("_flash_attention_forward", forward)
    with (
        mock.patch.object(modeling_flash_attention_utils, "is_flash_attn_available", _always),
        mock.patch.object(modeling_flash_attention_utils, "_lazy_imports", functions),
        mock.patch.object(modeling_flash_attention_utils, "_loaded_implementation", None),
        mock.patch.object(modeling_flash_attention_utils, "_is_packed_sequence", never),
        mock.patch.object(PreTrainedModel, "_flash_attn_can_dispatch", _supported),
    ):
        yield


def _supported(model: Any, *args: Any, **kwargs: Any) -> bool:
    """The library's own word on its model; the package is taken to be there."""
    name, known = type(model).__name__, getattr(model, "_compatible_flash_implementations", None)
    if not model._supports_flash_attn:
        raise ValueError(f"{name} does not support flash attention: choose attention eager")
    if known and "flash_attention_2" not in known:
        raise ValueError(
            f"{name} has no flash attention but {', '.join(known)}: choose attention eager"
        )
    return True


def _varlen(*args: Any, **kwargs: Any) -> Any:
    """Only its signature is used: transformers looks up what flash_attn can do."""
    raise ValueError("the traced step has no padding, so no variable lengths")


#: The parameters of flash_attn_varlen_func, flash_attn_interface.py.
_NAMES = (
    *("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"),
    *("dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes"),
    *("deterministic", "return_attn_probs", "block_table"),
)
_varlen.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # Python reads it
    [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in _NAMES]
)
