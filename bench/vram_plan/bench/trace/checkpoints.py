"""Activation checkpointing as transformers offers it: full, selective, and kept on the host.

Sources: transformers 5.23.0 ``modeling_utils.py`` (``activation_checkpointing_enable``), torch
2.13.0 ``torch/utils/checkpoint.py`` (``create_selective_checkpoint_contexts``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.autograd import graph
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.weak import WeakTensorKeyDictionary

from vram_plan.bench.trace import attention
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.storages import StorageLog

__all__ = ["Selective", "enable_checkpointing", "host_copies"]

_ATEN = torch.ops.aten
#: Matrix products and attention: dear to compute, so selective checkpointing keeps their results.
_KEPT = frozenset(
    {
        _ATEN.mm.default,
        _ATEN.addmm.default,
        _ATEN.bmm.default,
        _ATEN.baddbmm.default,
        _ATEN._grouped_mm.default,
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        attention.FLASH_FORWARD,
    }
)


class Selective:
    """The policy: results of matrix products and attention are kept, all else is made again.

    Products of adapters are cheap, so they are made again too: while a module that PEFT added
    runs, and none of the model's own inside it, nothing is kept. Nor is a stack of expert weights
    plus its pairs' product (PEFT 0.21.2 ``tuners/lora/layer.py`` ``_LoraFactorsProxy``), which
    runs where the experts ask for their weight.
    """

    def __init__(self) -> None:
        import bitsandbytes as bnb

        assert bnb.functional is not None  # its import defines the operators
        self.kept = {*_KEPT, torch.ops.bitsandbytes.gemm_4bit.default}
        self.running: list[bool] = []

    def __call__(self, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        """What becomes of an operator's result."""
        changes_weight = op is _ATEN.baddbmm.default and isinstance(args[0], torch.nn.Parameter)
        own = not self.running or self.running[-1]
        if op in self.kept and own and not changes_weight:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    def watch_added(self, model: torch.nn.Module, own: set[int]) -> None:
        """Modules besides a model's own belong to adapters."""
        for module in model.modules():
            module.register_forward_pre_hook(partial(self._enter, id(module) in own))
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, own: bool, *_: Any) -> None:
        self.running.append(own)

    def _leave(self, *_: Any) -> None:
        self.running.pop()


def enable_checkpointing(model: Any, config: TraceConfig) -> Selective | None:
    """Let a transformers model checkpoint its blocks; return the policy where there is one."""
    kind = config.checkpointing
    if kind == "none":
        return None
    if kind != "selective":
        model.activation_checkpointing_enable(offload=kind == "offload")
        return None
    policy = Selective()
    contexts = partial(
        create_selective_checkpoint_contexts, policy, allow_cache_entry_mutation=True
    )
    model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    return policy


@contextmanager
def host_copies(log: StorageLog) -> Iterator[None]:
    """``save_on_cpu`` on a fake device: its copies are host memory, what comes back is not.

    On CPU tensors the library's own copies nothing. A tensor whose elements do not fill its memory
    (an expanded one) is made contiguous on the device first (aten/src/ATen/native/cuda/Copy.cu,
    ``copy_requires_temporaries``).
    """
    were = WeakTensorKeyDictionary()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not torch._prims_common.is_non_overlapping_and_dense_or_false(tensor):
            log.scratch([tensor.numel() * tensor.itemsize], "copy to host", log.where)
        packed = log.block_of(tensor)
        with log.in_host_memory():
            kept = torch.empty_like(tensor, requires_grad=False)
        were[kept] = (packed.component or packed.role) if packed is not None else ""
        return kept

    def unpack(kept: torch.Tensor) -> torch.Tensor:
        back = torch.empty_like(kept)
        block = log.block_of(back)
        if block is not None:
            of_weight = were[kept] == "gradients"  # that a loss made going forward
            block.component = "gradients" if of_weight else "activations"
            block.role = "weights" if were[kept] == "weights" else ""
        return back

    class SaveOnHost(graph.saved_tensors_hooks):
        def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
            super().__init__(pack, unpack)

    from transformers import modeling_utils

    with (
        mock.patch.object(graph, "save_on_cpu", SaveOnHost),
        mock.patch.object(modeling_utils, "save_on_cpu", SaveOnHost),
    ):
        yield
