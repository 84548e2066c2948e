"""DistilBERT: BERT's block under other names, without token types and with one dropout less.

transformers 5.23.0 ``models/distilbert/modeling_distilbert.py``, ``DistilBertForMaskedLM``.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.bert import heads
from vram_plan.estimator.blocks.encoder_parts import numbered, plain_loss, transform
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.segment import Composition, Segment, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def embeddings(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``Embeddings.forward``; its sinusoidal positions are a table that is trained all the same."""
    spec, width = f.spec, f.spec.hidden_size
    words = f.embedding("embed_tokens", ids, spec.vocab_size, width)
    words = f.how.method.embed(f, words)
    positions = Tensor(f.seq, INDEX_BYTES, None)
    places = f.embedding("position_embeddings", positions, spec.position_embedding_rows, width)
    x = f.add(words, places)
    x = f.layer_norm("embeddings.LayerNorm", x, width)
    return f.dropout(x, spec.embedding_dropout)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``TransformerBlock.forward``: both sums are normalised, only the second has a dropout."""
    hidden, inner = f.spec.hidden_size, f.spec.intermediate_size
    attended, _weights = heads(f, x, ("attention.q_lin", "attention.k_lin", "attention.v_lin"))
    attended = f.linear("attention.out_lin", attended, (hidden, hidden), bias=True, split="row")
    attended = f.sublayer("attention", attended, x)
    attended = f.layer_norm("sa_layer_norm", f.add(attended, x), hidden)
    out = _feed_forward(f, attended, hidden, inner)
    return f.layer_norm("output_layer_norm", f.add(out, attended), hidden)


def _feed_forward(f: Forward, entered: Tensor, hidden: int, inner: int) -> Tensor:
    x = f.linear("ffn.lin1", entered, (hidden, inner), bias=True, split="column")
    x = f.act(x)
    x = f.linear("ffn.lin2", x, (inner, hidden), bias=True, split="row")
    x = f.sublayer("mlp", x, entered)
    return f.dropout(x, f.spec.hidden_dropout)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``vocab_transform``, norm, ``vocab_projector`` and the loss over all positions."""
    hidden = transform(f, x, ("vocab_transform", "vocab_layer_norm"))
    return plain_loss(f, hidden, f.spec.hidden_size)


def positions(f: Forward) -> dict[str, Shared]:
    """``position_ids``; there are no token types."""
    return {"position_ids": numbered(f)["position_ids"]}


def compose(spec: ModelSpec) -> Composition:
    """``DistilBertForMaskedLM``."""
    layers = spec.num_hidden_layers
    return Composition(
        segments=(
            Segment(name="embeddings", kind="embedding", run=embeddings, named=True),
            Segment(name="transformer.layer", kind="layer", run=layer, count=layers, first=0),
            Segment(name="vocab_projector", kind="head", run=head),
        ),
        shared=positions,
    )
