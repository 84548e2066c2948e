"""Warnings of libraries about each other, which say nothing about the traced step."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_library_noise"]

_KNOWN = (
    # PEFT 0.21.2 asks transformers 5.23.0 for a property it has renamed.
    "`is_gradient_checkpointing` is deprecated",
    # PEFT corrects itself for GPT-2's Conv1D.
    "fan_in_fan_out is set to False",
    # bitsandbytes sees a fake GPU as a CPU.
    "Paged optimizers are not supported on CPU",
    # bitsandbytes 0.50.2, about its own int8 state.
    "MatmulLtState",
)
_LOGGERS = ("bitsandbytes", "transformers")


@contextmanager
def without_library_noise() -> Iterator[None]:
    """Keep these warnings, and what the libraries log below an error, to themselves."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in _KNOWN:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
