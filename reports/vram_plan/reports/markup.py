"""Text from outside within Markdown: model names, hosts and notes are no markup."""

from __future__ import annotations

__all__ = ["plain"]

_NAMES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"))


def plain(text: str) -> str:
    """One line in which nothing is a tag, an entity or the border of a cell."""
    for sign, name in _NAMES:
        text = text.replace(sign, name)
    return " ".join(text.split())
