"""Engines that give memory back by resizing a storage, which no operator sees."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from vram_plan.bench.trace.modules import ModulePaths
from vram_plan.bench.trace.storages import StorageLog

__all__ = ["patched", "resizing", "within"]


def resizing(
    function: Callable[..., Any], log: StorageLog, paths: ModulePaths
) -> Callable[..., Any]:
    """A function that resizes its first argument's storage and tells the log."""

    @functools.wraps(function)
    def call(tensor: Any, *rest: Any) -> Any:
        result = function(tensor, *rest)
        log.where = paths.mover or ""
        log.see(tensor, "resize", paths.engine or "")
        return result

    return call


def within(
    function: Callable[..., Any], paths: ModulePaths, place: Callable[..., str]
) -> Callable[..., Any]:
    """A function whose allocations belong to the place that its arguments tell."""

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        with paths.moving(place(*args)):
            return function(*args, **keywords)

    return call


@contextmanager
def patched(patches: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace attributes for a while: (owner, name, new)."""
    with ExitStack() as stack:
        for owner, name, new in patches:
            stack.enter_context(mock.patch.object(owner, name, new))
        yield
