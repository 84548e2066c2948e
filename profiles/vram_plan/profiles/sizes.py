"""Size classes: `7b` is exactly 7,000,000,000 parameters with a representative shape.

Textbook figures then come out as the textbooks print them, whatever the published model of that
name counts. The shapes and their sources are in `data/sizes.csv`.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from vram_plan.profiles.model import ModelSpec

__all__ = ["SizeClass", "size_class", "size_classes"]

_FILE = os.path.join(os.path.dirname(__file__), "data", "sizes.csv")
_PATTERN = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([mbt])", re.IGNORECASE | re.ASCII)
_UNITS = {"m": 10**6, "b": 10**9, "t": 10**12}
_RANGE = (10**7, 10**13)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeClass:
    """One row of `data/sizes.csv`.

    Attributes:
        size: What a person types, ``7b``.
        parameters: What it stands for.
        shape: The published model that lends its shape.
        source: Where that shape is published.
        hidden_size: Width of the residual stream.
        num_hidden_layers: Blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        intermediate_size: Inner width of the gated feed-forward part.
        vocab_size: Rows of the token embedding.
        tie_word_embeddings: The head uses the embedding's weight.
    """

    size: str
    parameters: int
    shape: str
    source: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool

    def layers_for(self, parameters: int) -> int:
        """Blocks of this shape that come nearest a number of parameters.

        A block has ``2·h² + 2·h·kv`` weights in attention and ``3·h·i`` in the feed-forward part,
        with kv the width of all key heads; norms are left out.
        """
        kv_share = self.num_key_value_heads / self.num_attention_heads
        attention = 2 * self.hidden_size**2 * (1 + kv_share)
        block = attention + 3 * self.hidden_size * self.intermediate_size
        tables = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return max(1, round((parameters - tables) / block))


@lru_cache(maxsize=1)
def size_classes() -> tuple[SizeClass, ...]:
    """All listed classes, smallest first."""
    with open(_FILE, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return tuple(_read(row) for row in rows)


def _read(row: dict[str, str]) -> SizeClass:
    size = row["size"]
    match = _PATTERN.fullmatch(size)
    assert match, f"{_FILE}: {size!r} is no size"
    return SizeClass(
        size=size,
        parameters=_count(match),
        shape=row["shape"],
        source=row["source"],
        hidden_size=int(row["hidden_size"]),
        num_hidden_layers=int(row["num_hidden_layers"]),
        num_attention_heads=int(row["num_attention_heads"]),
        num_key_value_heads=int(row["num_key_value_heads"]),
        intermediate_size=int(row["intermediate_size"]),
        vocab_size=int(row["vocab_size"]),
        tie_word_embeddings=row["tie_word_embeddings"] == "true",
    )


def _count(match: re.Match[str]) -> int:
    return int(Decimal(match[1]) * _UNITS[match[2].lower()])


@lru_cache(maxsize=256)
def size_class(text: str) -> ModelSpec | None:
    """The model that a size stands for, or None when the text is no size.

    A size that is not listed takes the block of the nearest listed class and as many layers as
    its parameters need.

    Raises:
        ValueError: for a size outside 10m to 10t.
    """
    match = _PATTERN.fullmatch(text)
    if not match:
        return None
    parameters = _count(match)
    if not _RANGE[0] <= parameters <= _RANGE[1]:
        raise ValueError(f"--model {text}: a size must be between 10m and 10t, for example 7b")
    return _spec(text, parameters)


def _spec(text: str, parameters: int) -> ModelSpec:
    nearest = min(
        size_classes(),
        key=lambda one: max(one.parameters, parameters) / min(one.parameters, parameters),
    )
    layers, shape = nearest.num_hidden_layers, nearest.shape
    if nearest.parameters != parameters:
        layers = nearest.layers_for(parameters)
        shape = f"{shape}, {layers} layers instead of {nearest.num_hidden_layers}"
    return ModelSpec(
        name=text,
        source=nearest.source,
        note=(
            f"size class: exactly {parameters:,} parameters with the shape of {shape} "
            f"({nearest.source})"
        ),
        nominal_parameters=parameters,
        model_type="llama",
        torch_dtype="bfloat16",
        hidden_size=nearest.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=nearest.num_attention_heads,
        num_key_value_heads=nearest.num_key_value_heads,
        head_dim=nearest.hidden_size // nearest.num_attention_heads,
        intermediate_size=nearest.intermediate_size,
        vocab_size=nearest.vocab_size,
        tie_word_embeddings=nearest.tie_word_embeddings,
    )
