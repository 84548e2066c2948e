"""A run without what names a person or a machine, so that it can be shared.

Figures, versions and the GPU's product stay; folders, host names, user names and serial numbers go.
A model or file that was given by a path keeps its last part.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["redacted"]

_PATH = re.compile(r"(?:[A-Za-z]:)?[\\/~](?:[^\s\"'\\/:,;()<>|]+[\\/])+([^\s\"'\\/:,;()<>|]*)")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?")
_MAIL = re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b")
_HOST = re.compile(r"(\b(?:host|hostname|node|user)\s*[:=]\s*)\S+", re.IGNORECASE)
_SERIAL = re.compile(r"\b(?:GPU|MIG)-[0-9a-fA-F]{8}-[0-9a-fA-F-]+\b")
_DROPPED = frozenset({"log_tail"})
"""What libraries printed may hold anything."""


def redacted(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same run, every text cleaned; what a failing run printed is dropped."""
    found: dict[str, Any] = json.loads(json.dumps(document), object_hook=_kept)
    cleaned: dict[str, Any] = _clean(found)
    return cleaned


def _kept(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in _DROPPED}


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {_text(name): _clean(one) for name, one in value.items()}
    return value


def _text(text: str) -> str:
    text = _SERIAL.sub(_digest, text)
    text = _PATH.sub(lambda match: match[1] or "folder", text)
    text = _MAIL.sub("someone", text)
    text = _ADDRESS.sub("address", text)
    return _HOST.sub(r"\1redacted", text)


def _digest(match: re.Match[str]) -> str:
    """The same for the same GPU, and no way back."""
    return f"GPU-{hashlib.sha256(match[0].encode()).hexdigest()[:8]}"
