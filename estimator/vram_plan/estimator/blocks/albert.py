"""ALBERT: blocks that share their weights, behind a narrow embedding.

transformers 5.23.0 ``models/albert/modeling_albert.py``, ``AlbertForMaskedLM``. Its blocks cannot
be checkpointed there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vram_plan.estimator.blocks.bert import bert_embeddings, heads
from vram_plan.estimator.blocks.encoder_parts import numbered, plain_loss, transform
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

EMBEDDED = "embedding_output"
"""What the embedding's own modules made: ``AlbertModel.forward`` names it."""


def embeddings(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``AlbertEmbeddings`` and the mapping to the width of the blocks, which is always there."""
    width = f.spec.embedding_size or f.spec.hidden_size
    x = f.produce(EMBEDDED, bert_embeddings(f, ids, width))
    return f.linear(
        "encoder.embedding_hidden_mapping_in", x, (width, f.spec.hidden_size), bias=True
    )


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``AlbertLayer.forward``: no dropout after the feed-forward part."""
    attended, _weights = _attention(f, x)
    out = _feed_forward(f, attended)
    return f.layer_norm("full_layer_layer_norm", f.add(out, attended), f.spec.hidden_size)


def _attention(f: Forward, x: Tensor) -> tuple[Tensor, Tensor | None]:
    hidden = f.spec.hidden_size
    out, weights = heads(f, x, ("attention.query", "attention.key", "attention.value"))
    out = f.linear("attention.dense", out, (hidden, hidden), bias=True, split="row")
    out = f.sublayer("attention", out, x)
    out = f.dropout(out, f.spec.hidden_dropout)
    return f.layer_norm("attention.LayerNorm", f.add(x, out), hidden), weights


def _feed_forward(f: Forward, entered: Tensor) -> Tensor:
    shape = (f.spec.hidden_size, f.spec.intermediate_size)
    x = f.linear("ffn", entered, shape, bias=True, split="column")
    x = f.act(x)
    x = f.linear("ffn_output", x, shape[::-1], bias=True, split="row")
    return f.sublayer("mlp", x, entered)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``AlbertMLMHead`` and its loss over all positions."""
    hidden = transform(f, x, ("predictions.dense", "predictions.LayerNorm"))
    return plain_loss(f, hidden, f.spec.embedding_size or f.spec.hidden_size)


def _groups(spec: ModelSpec) -> Iterator[Segment]:
    """Every group's blocks; only its last round owns the weights, whose gradients come first."""
    first, rounds = 0, [0] * spec.num_hidden_groups
    for block in range(spec.num_hidden_layers):
        rounds[int(block / (spec.num_hidden_layers / spec.num_hidden_groups))] += 1
    for group, times in enumerate(rounds):
        name = f"encoder.albert_layer_groups.{group}.albert_layers"
        for count, repeats in (
            ((times - 1) * spec.inner_group_num, True),
            (spec.inner_group_num, False),
        ):
            if times and count:
                yield Segment(
                    name=name,
                    kind="layer",
                    run=layer,
                    count=count,
                    first=first,
                    repeats=repeats,
                    holds=(EMBEDDED,),
                )
                first += count


def compose(spec: ModelSpec) -> Composition:
    """``AlbertForMaskedLM``."""
    return Composition(
        segments=(
            Segment(name="embeddings", kind="embedding", run=embeddings),
            *_groups(spec),
            Segment(name="predictions", kind="head", run=head),
        ),
        shared=numbered,
    )
