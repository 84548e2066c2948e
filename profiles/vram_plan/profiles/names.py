"""Names a person typed that nobody knows, and what they may have meant."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["UnknownNameError", "suggest"]

_MOST = 3  # suggestions worth reading


class UnknownNameError(ValueError):
    """A name that is in no catalogue; the message says which near names are."""


def suggest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean a, b?"`` from the near names, or an empty string if none is near."""
    from difflib import get_close_matches  # only errors need it

    by_folded = {one.casefold(): one for one in known}
    near = get_close_matches(name.casefold(), list(by_folded), n=_MOST, cutoff=0.6)
    return f"; did you mean {', '.join(by_folded[one] for one in near)}?" if near else ""
