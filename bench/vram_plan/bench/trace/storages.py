"""Follow every storage: who made it, how large it is, when it dies."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vram_plan.bench.trace.timeline import Block, Event, round_up

__all__ = ["StorageLog", "tensors_in"]

_DTYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
    torch.uint8: "uint8",
    torch.int8: "int8",
}


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of an operator's result."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


class StorageLog:
    """The running account of live storages and the list of its changes.

    A storage is known by its address while it lives; a weak reference tells of its end. Sizes are
    looked at again whenever a storage is seen, since storages may be resized in place.
    """

    def __init__(self) -> None:
        self.live_bytes = 0
        self.phase = "build"
        self.where = ""
        self.events: list[Event] = []
        self.blocks: dict[int, Block] = {}
        self._finalizers: dict[int, weakref.ref[Any]] = {}
        self._seen: dict[int, int] = {}
        self._host: dict[int, weakref.ref[Any]] = {}
        self._count = 0
        self.host_bytes = 0
        self.host_peak = 0
        self.on_host_now = False
        self.keeps_history = False
        self.history: list[Event] = []
        self.role_of: Callable[[Block], str] = lambda block: ""

    def enter(self, phase: str) -> None:
        """Begin a phase, with an event of its own that changes nothing."""
        self.where = ""
        self.phase = phase
        nothing = Block(
            number=-1, bytes=0, shape=(), dtype="", op="(phase)", module="", phase=phase
        )
        self.events.append(Event(nothing, 0, self.live_bytes, phase, self.where))

    def restart(self) -> tuple[int, list[Block]]:
        """Begin a new step: forget the events (or keep them as history), return what is alive."""
        self.phase = "start"
        if self.keeps_history:
            self.history += self.events
        self.events = []
        self.host_peak = self.host_bytes
        return self.live_bytes, [block for block in self.blocks.values() if block.bytes]

    def see(
        self, tensor: torch.Tensor, op: str, module: str, size: int | None = None
    ) -> Block | None:
        """Note the storage below ``tensor``; return its block when it is new.

        Args:
            tensor: a tensor.
            op: the operator that returned it.
            module: the module that ran it.
            size: bytes on the device where they are not those of the fake storage.
        """
        storage = tensor.untyped_storage()
        key = storage._cdata
        bytes_now = storage.nbytes()
        block = self.blocks.get(key)
        if key in self._host:
            return None
        if self.on_host_now:
            self.on_host(tensor)
            return None
        if block is not None:
            if bytes_now != self._seen[key]:
                self._resized(block, tensor, op, module)
            return None
        self._seen[key] = bytes_now
        size = round_up(bytes_now if size is None else size)
        block = self.new_block(size, tuple(tensor.shape), tensor.dtype, op, module)
        self.blocks[key] = block
        # The storage's Python object lives exactly as long as the storage: torch keeps it.
        self._finalizers[key] = weakref.ref(storage, lambda _: self._died(key))
        self._change(block, size)
        return block

    def new_block(
        self, size: int, shape: tuple[int, ...], dtype: torch.dtype, op: str, module: str
    ) -> Block:
        """A block that is not a tensor's, such as a kernel's scratch memory."""
        self._count += 1
        block = Block(
            number=self._count - 1,
            bytes=size,
            shape=shape,
            dtype=_DTYPES.get(dtype, str(dtype).removeprefix("torch.")),
            op=op,
            module=module,
            phase=self.phase,
        )
        block.role = self.role_of(block)
        return block

    def scratch(self, sizes: Iterable[int], op: str, module: str) -> None:
        """Count memory that a kernel takes and gives back within one call."""
        blocks = [
            self.new_block(round_up(size), (size,), torch.uint8, f"{op} scratch", module)
            for size in sizes
            if size > 0
        ]
        for block in blocks:
            self._change(block, block.bytes)
        for block in reversed(blocks):
            self._change(block, -block.bytes)

    def block_of(self, tensor: torch.Tensor) -> Block | None:
        """The block below a tensor."""
        return self.blocks.get(tensor.untyped_storage()._cdata)

    def on_host(self, tensor: torch.Tensor) -> None:
        """Count this storage as host memory, not the device's."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._host:
            return
        self._host[key] = weakref.ref(storage, lambda _: self._left_host(key, size))
        self.host_bytes += size
        self.host_peak = max(self.host_peak, self.host_bytes)
        self._died(key)

    @contextmanager
    def in_host_memory(self) -> Iterator[None]:
        """What is made inside is host memory."""
        self.on_host_now = True
        try:
            yield
        finally:
            self.on_host_now = False

    def _left_host(self, key: int, size: int) -> None:
        self._host.pop(key, None)
        self.host_bytes -= size

    def _resized(self, block: Block, tensor: torch.Tensor, op: str, module: str) -> None:
        """The old memory is given back, other memory taken: a block of its own."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._seen[key] = bytes_now = storage.nbytes()
        self._change(block, -block.bytes)
        shape = tuple(tensor.shape)
        new = self.new_block(round_up(bytes_now), shape, tensor.dtype, op, module)
        self.blocks[key] = new
        self._change(new, new.bytes)

    def name_the_rest(self) -> None:
        """Blocks that nobody has named are what their making told."""
        events = (*self.history, *self.events)
        for block in (*self.blocks.values(), *(event.block for event in events)):
            block.component = block.component or block.role

    def _died(self, key: int) -> None:
        block = self.blocks.pop(key, None)
        self._finalizers.pop(key, None)
        self._seen.pop(key, None)
        if block is not None:
            self._change(block, -block.bytes)

    def _change(self, block: Block, delta: int) -> None:
        if delta == 0:
            return
        self.live_bytes += delta
        self.events.append(Event(block, delta, self.live_bytes, self.phase, self.where))
