"""One process as rank 0 of a job: collectives return at once, their results are never read."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["fake_ranks", "mesh_of"]


@contextmanager
def fake_ranks(count: int) -> Iterator[None]:
    """A fake process group, unless one of the right size is there already.

    Args:
        count: ranks in the job.

    Raises:
        ValueError: there is a process group of another size.
    """
    from torch import distributed

    if distributed.is_initialized():
        if distributed.get_world_size() != count:
            raise ValueError(
                f"ranks {count}: this process is in a job of {distributed.get_world_size()} ranks "
                "already; trace in a process of its own"
            )
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    store: Any = FakeStore
    hook = sys.excepthook  # a process group puts its own there
    distributed.init_process_group("fake", rank=0, world_size=count, store=store())
    try:
        yield
    finally:
        distributed.destroy_process_group()
        sys.excepthook = hook


def mesh_of(*sizes: int, names: tuple[str, ...] | None = None) -> Any:
    """A mesh of ranks on the device that stands for the GPU."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", sizes, mesh_dim_names=names)
