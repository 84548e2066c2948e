"""From a measured row to the architecture it ran.

A name of the catalogue is that model; a row that gives its shape changes it where the two differ
(a padded vocabulary, an MPT of another size). Any other shape is built from the row's columns.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from vram_plan.profiles.measured_row import ARCHITECTURE, Row
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import CatalogueEntry, catalogue
from vram_plan.reports.validate.source_facts import HEADS

_MEGATRON = frozenset({"megatron", "megatron-deepspeed"})
_MEGATRON_DROPOUT = 0.1
"""Default of ``--hidden-dropout`` and ``--attention-dropout``, Megatron-LM
``megatron/training/arguments.py``; models with neither biases nor a table of positions are of
Llama's kind, which is trained without."""
_LABELS = {"classification": 2, "regression": 1}
"""Objectives with a head over sequences; two classes unless said otherwise, as transformers has."""
_MISMATCH = 0.05
"""A shape whose parameters differ by more from those stated is another architecture."""
_NEEDED = ("hidden_size", "num_layers", "num_heads", "vocab_size", "mlp")


def model_of_row(row: Row) -> ModelSpec:
    """The architecture of a row.

    Raises:
        ValueError: naming what is not stated.
    """
    row = _with_heads(row)
    found = _catalogued(row.model) or _relative(row)
    spec = _from_columns(row) if found is None else _as_stated(found, row)
    labels = _LABELS.get(row.objective or "", 0)
    return replace(spec, num_labels=labels) if labels else spec


def _with_heads(row: Row) -> Row:
    """The row with the heads that its file says of all its tables."""
    path = (row.source or "").partition("@")[2].partition(":")[2].partition("#")[0]
    heads = HEADS.get(path) if row.num_heads is None else None
    return replace(row, num_heads=heads) if heads else row


def _catalogued(name: str | None) -> ModelSpec | None:
    entry = _names().get((name or "").casefold())
    return _spec(entry) if entry else None


@cache
def _names() -> dict[str, CatalogueEntry]:
    """Catalogue entries by hub id and alias in lower case, and by the last part of either."""
    names: dict[str, CatalogueEntry] = {}
    for entry in catalogue():
        for name in (entry.name, *entry.aliases):
            names[name.casefold()] = entry
    for entry in catalogue():
        for name in (entry.name, *entry.aliases):
            names.setdefault(name.casefold().rpartition("/")[2], entry)
    return names


@cache
def _spec(entry: CatalogueEntry) -> ModelSpec:
    return entry.spec()


def _relative(row: Row) -> ModelSpec | None:
    """A model of the same organisation and family: ``mosaicml/mpt-7b`` for ``mosaicml/mpt-1b``.

    Only for rows that give their shape: it takes the place of the relative's.
    """
    name = (row.model or "").casefold()
    if "/" not in name or any(getattr(row, column) is None for column in _NEEDED):
        return None
    stem = name.partition("-")[0]
    for entry in catalogue():
        if entry.name.casefold().partition("-")[0] == stem and "-" in name:
            spec = _spec(entry)
            if spec.is_gated_act == (row.mlp == "gated") and not spec.num_experts:
                return replace(spec, name=row.model or "", source=row.source or "")
    return None


def _as_stated(spec: ModelSpec, row: Row) -> ModelSpec:
    """The model with the figures of the row where it gives other ones."""
    changes: dict[str, Any] = {}
    for column, field in ARCHITECTURE.items():
        stated = getattr(row, column)
        if stated is not None and stated != getattr(spec, field):
            changes[field] = stated
    if not changes:
        return spec
    if "num_hidden_layers" in changes:
        changes["layer_types"] = ()
    return replace(spec, **changes)


def _from_columns(row: Row) -> ModelSpec:
    for column in _NEEDED:
        if getattr(row, column) is None:
            raise ValueError(f"model {row.model}: {column.replace('_', ' ')} is not stated")
    candidates = [_candidate(row, **variant) for variant in _variants(row)]
    if row.params is None:
        return candidates[0]
    stated = row.params
    nearest = min(candidates, key=lambda spec: abs(parameters(spec) - stated))
    if abs(parameters(nearest) / stated - 1) > _MISMATCH:
        raise ValueError(
            f"model {row.model}: its shape makes {parameters(nearest):,} parameters, the row "
            f"says {stated:,}"
        )
    return nearest


def _variants(row: Row) -> list[dict[str, bool]]:
    """What a shape leaves open, likeliest first: biases, and a table of positions.

    A gated feed-forward part came with rotary positions and without biases (Llama); a plain one
    with a table of positions and biases (GPT-2).
    """
    gated = row.mlp == "gated"
    order = (False, True) if gated else (True, False)
    return [{"biases": biases, "table": table} for table in order for biases in order]


def _candidate(row: Row, *, biases: bool, table: bool) -> ModelSpec:
    assert row.hidden_size
    assert row.num_heads
    gated = row.mlp == "gated"
    head = row.head_dim or row.hidden_size // row.num_heads
    values: dict[str, Any] = {
        "name": row.model or row.id,
        "source": row.source or "",
        "model_type": _model_type(row),
        "hidden_size": row.hidden_size,
        "num_hidden_layers": row.num_layers,
        "num_attention_heads": row.num_heads,
        "num_key_value_heads": row.num_kv_heads or row.num_heads,
        "head_dim": head,
        "intermediate_size": row.intermediate_size or 4 * row.hidden_size,
        "hidden_act": "silu" if gated else "gelu_new",
        "is_gated_act": gated,
        "vocab_size": row.vocab_size,
        "tie_word_embeddings": bool(row.tied_embeddings),
        "attention_bias": biases,
        "attention_out_bias": biases,
        "mlp_bias": biases,
        "num_experts": row.num_experts or 0,
        "num_experts_per_tok": row.experts_per_token or 0,
        "moe_intermediate_size": row.moe_intermediate_size or 0,
        "shared_expert_intermediate_size": row.shared_intermediate_size or 0,
    }
    if (table or biases) and row.engine in _MEGATRON:
        values |= dict.fromkeys(("hidden_dropout", "attention_dropout"), _MEGATRON_DROPOUT)
    if table:
        rows = row.seq_len or 2048
        values |= {
            "position_embedding_type": "learned",
            "position_embedding_rows": rows,
            "max_position_embeddings": rows,
        }
    return ModelSpec(**values)


def _model_type(row: Row) -> str:
    if row.num_experts:
        return "mixtral"
    return "llama" if row.mlp == "gated" else "gpt2"


def parameters(spec: ModelSpec) -> int:
    """Parameters of a decoder of equal blocks, each with two norms, and one norm at the end."""
    hidden, width = spec.hidden_size, spec.intermediate_size
    queries = spec.num_attention_heads * spec.head_dim
    both = queries + 2 * spec.num_key_value_heads * spec.head_dim
    norm = hidden * (1 if spec.is_gated_act else 2)
    attention = hidden * both + queries * hidden
    matrices = 3 if spec.is_gated_act else 2
    feed_forward = matrices * hidden * width
    biases = (both + hidden + (matrices - 1) * width + hidden) if spec.mlp_bias else 0
    if spec.num_experts:
        experts = (
            spec.num_experts * spec.moe_intermediate_size + spec.shared_expert_intermediate_size
        )
        feed_forward = matrices * hidden * experts + hidden * spec.num_experts
    block = attention + feed_forward + biases + 2 * norm
    tables = spec.vocab_size * hidden * (1 if spec.tie_word_embeddings else 2)
    return spec.num_hidden_layers * block + tables + spec.position_embedding_rows * hidden + norm
