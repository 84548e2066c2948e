"""How far a search has come, on stderr, once it takes longer than a second."""

from __future__ import annotations

import sys
import time

_QUIET, _OFTEN, _SELDOM = 1.0, 0.2, 5.0
"""Seconds: without a word; between lines on a terminal; between lines in a log."""


class Progress:
    """Rewrites one line on a terminal; writes a line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._start = time.monotonic()
        self._next = self._start + _QUIET
        self._shown = False

    def __call__(self, settled: int, raw: int) -> None:
        """Say it if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_OFTEN if self._terminal else _SELDOM)
        self._shown = True
        share = 100 * settled / raw
        line = f"{settled:,} of {raw:,} configurations settled ({share:.0f} %), Ctrl-C: best so far"
        sys.stderr.write(f"\r{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave the terminal's line empty."""
        if self._shown and self._terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
