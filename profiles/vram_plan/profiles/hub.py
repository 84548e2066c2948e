"""The `config.json` of a model on the Hugging Face hub; nothing else is fetched or executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vram_plan.profiles.hf_config import read_config

__all__ = ["fetch_config", "is_hub_id"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_TIMEOUT_S = 10.0


def is_hub_id(text: str) -> bool:
    """Whether a text has the form ``organisation/name``."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith(".json")


def fetch_config(hub_id: str) -> dict[str, Any]:
    """A model's `config.json` from the local cache of huggingface_hub, else from the hub.

    Raises:
        ValueError: if huggingface_hub is missing, the hub does not answer or has no such file.
    """
    try:
        path = _download(hub_id)
    except ImportError:
        raise ValueError(
            f"{hub_id} is not in the catalogue, and asking the hub needs huggingface_hub: "
            "pip install huggingface_hub, or give the path of a local config.json"
        ) from None
    # The library raises its own, requests', httpx' and the system's errors: mapped here, once.
    except Exception as error:
        raise ValueError(
            f"{hub_id} is not in the catalogue, and the Hugging Face hub gave no config.json "
            f"({_first_line(error)}); check the name and the connection (gated models need "
            "`hf auth login`), or give the path of a local config.json"
        ) from None
    return read_config(path)


def _download(hub_id: str) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    if not constants.HF_HUB_OFFLINE:
        _require_answer(constants.ENDPOINT)
    return Path(hf_hub_download(hub_id, "config.json", etag_timeout=_TIMEOUT_S))


def _require_answer(endpoint: str) -> None:
    """Fail at once where the library would try for half a minute to reach a hub that is not there.

    Only a missing name or connection counts: any answer, and any trouble with certificates, is
    left to the library, which may be set up for them.
    """
    from ssl import SSLError
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=_TIMEOUT_S):
            pass
    except HTTPError:
        pass
    except URLError as error:
        if not isinstance(error.reason, SSLError):
            raise ConnectionError(f"{endpoint} does not answer: {error.reason}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
