"""Which tensor of DeepSpeed's is what: the plan's components, by who holds them."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from vram_plan.bench.trace.step import paged_states
from vram_plan.bench.trace.storages import StorageLog
from vram_plan.bench.virtual.case import ZeroCase

__all__ = ["Names", "held_by"]

_MASTERS = (
    "single_partition_of_fp32_groups",  # stages 1 and 2
    "fp32_partitioned_groups_flat",  # stage 3
    "fp32_groups_flat_partition",  # stage 1 with fp32 accumulation
    "fp32_groups_flat",  # stage 0 with FusedAdam
    "fp32_groups",  # stage 0 with another optimizer
)
_GRADIENTS = (
    "averaged_gradients",
    "all_grad_tensors",
    "grad_partitions_flat_buffer",
    "fp32_groups_gradients_flat",
    "accumulated_grads_in_cpu",
)
_HOST_BUFFERS = ("param_buffer_of_bit16_for_cpu_offload_groups", "temp_grad_buffer_for_cpu_offload")
_HOST_WEIGHTS = "param_groups_fp16_flat_cpu_memory"


class Names:
    """Names the blocks of a log, and counts what a GPU's job would keep on the host.

    On the CPU the device's memory and the host's are the same; DeepSpeed's own attributes say
    which tensor it would keep where.

    Attributes:
        host: component → bytes of one rank on the host.
        buckets: DeepSpeed's, into which gradients are copied; each is made by the first of them.
    """

    def __init__(self, log: StorageLog, model: Any, case: ZeroCase) -> None:
        self.log = log
        self.model = model
        self.offloads = case.offloads
        self.optimizer = case.step.optimizer
        self.host: dict[str, int] = {}
        self.buckets: dict[Any, Any] = {}
        self._pinned: set[int] = set()
        self._moved: set[int] = set()

    def pinned(self, tensor: torch.Tensor) -> None:
        """Note a tensor that would be locked in host memory."""
        self._pinned.add(tensor.untyped_storage()._cdata)

    def watch_gradients(self) -> None:
        """Name every gradient where autograd puts it."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._arrived)

    def watch_buckets(self, optimizer: Any) -> None:
        """Name every bucket as it is made; one that a single gradient fills never sees another."""
        make = getattr(optimizer, "setup_buckets", None)
        if make is not None:
            optimizer.setup_buckets = partial(self._made, make)

    def _made(self, make: Callable[[], None]) -> None:
        make()
        self._name_buckets()

    def _name_buckets(self) -> None:
        for bucket in self.buckets.values():
            self.name("buffers", _tensors(bucket.buffer))

    def _arrived(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self.name("gradients", [parameter.grad])
        self._name_buckets()

    def name(self, component: str, tensors: Iterable[torch.Tensor]) -> None:
        """Name the blocks below some tensors, unless they have a name."""
        for tensor in tensors:
            block = self.log.block_of(tensor)
            if block is not None and not block.component:
                block.component = component

    def residents(self, engine: Any) -> None:
        """Name what the engine holds now, and move the host's part off the device."""
        optimizer = engine.optimizer
        self.buckets = getattr(optimizer, "ipg_buckets", {})
        self._name_buckets()
        groups = held_by(engine, self.model)
        for component in ("weights", "master_weights", "gradients", "optimizer_states"):
            self.name(component, groups[component])
        self.name("buffers", self.model.buffers())
        if self.offloads[0]:
            self._to_host(groups, optimizer)
        for state in paged_states(self.optimizer, engine.basic_optimizer):
            self._move("optimizer_states", state)

    def _to_host(self, groups: dict[str, list[torch.Tensor]], optimizer: Any) -> None:
        masters = groups["master_weights"]
        wide = [master.grad for master in masters if master.grad is not None]
        away = {
            "master_weights": masters,
            "gradients": [*_held(optimizer, _GRADIENTS[2:]), *wide],
            "optimizer_states": groups["optimizer_states"],
            "buffers": groups["buffers"],
        }
        if self.offloads[1]:
            away["weights"] = [*_held(optimizer, (_HOST_WEIGHTS,)), *_weights(self.model)]
        for component, tensors in away.items():
            for tensor in tensors:
                self._move(component, tensor)

    def _move(self, component: str, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._moved:
            return
        self._moved.add(storage._cdata)
        nbytes = storage.nbytes()
        if storage._cdata in self._pinned and nbytes:
            # torch 2.13.0 aten/src/ATen/core/CachingHostAllocator.h: powers of two
            nbytes = 1 << (nbytes - 1).bit_length()
        self.host[component] = self.host.get(component, 0) + nbytes
        self.log.on_host(tensor)

    def rest(self) -> None:
        """Name what nobody holds by name: activations, logits, temporaries, buffers."""
        events = (*self.log.history, *self.log.events)
        for block in (*self.log.blocks.values(), *(event.block for event in events)):
            if block.phase == "build":
                block.component = block.component or "buffers"
        self.log.name_the_rest()


def held_by(engine: Any, model: Any) -> dict[str, list[torch.Tensor]]:
    """Component → tensors that an engine holds now, by its own attributes."""
    optimizer = engine.optimizer
    return {
        "weights": list(_weights(model)),
        "master_weights": list(_held(optimizer, _MASTERS)),
        "gradients": [*_held(optimizer, _GRADIENTS), *_gradients(model, optimizer)],
        "optimizer_states": list(_states(engine.basic_optimizer)),
        "buffers": list(_held(optimizer, _HOST_BUFFERS)),
    }


def _weights(model: Any) -> Iterator[torch.Tensor]:
    for parameter in model.parameters():
        part = getattr(parameter, "ds_tensor", None)
        yield parameter if part is None else part


def _gradients(model: Any, optimizer: Any) -> Iterator[torch.Tensor]:
    for parameter in (*model.parameters(), *_held(optimizer, _MASTERS)):
        if parameter.grad is not None:
            yield parameter.grad


def _held(owner: Any, names: tuple[str, ...]) -> Iterator[torch.Tensor]:
    for name in names:
        yield from _tensors(getattr(owner, name, None))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _states(optimizer: Any) -> Iterator[torch.Tensor]:
    for state in getattr(optimizer, "state", {}).values():
        yield from (item for item in state.values() if isinstance(item, torch.Tensor))
