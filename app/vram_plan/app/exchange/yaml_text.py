"""YAML in the order it was thought of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def yaml_text(values: Mapping[str, Any], *, heading: str = "") -> str:
    """Keys and values as YAML, below a comment."""
    import yaml  # imported when a file is written

    comment = "".join(f"# {line}\n" for line in heading.splitlines())
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(dict(values), Dumper=dumper, sort_keys=False, allow_unicode=True)
    return comment + text
