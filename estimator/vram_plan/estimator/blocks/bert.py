"""BERT and its relatives (RoBERTa, XLM-RoBERTa, ELECTRA): post-norm encoders with a masked-LM head.

transformers 5.23.0 ``models/{bert,roberta,xlm_roberta,electra}/modeling_*.py``, ``…ForMaskedLM``.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.encoder_parts import attend, numbered, plain_loss, transform
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.elementwise import relayout
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

_COUNTED_POSITIONS = ("roberta", "xlm-roberta")
"""Position ids are counted from the token ids, one row per sequence, not read from a buffer."""

_HEADS = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", ""),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "gelu"),
    "xlm-roberta": ("lm_head.dense", "lm_head.layer_norm", "gelu"),
    "electra": ("generator_predictions.dense", "generator_predictions.LayerNorm", "gelu"),
}
"""Dense layer, norm and activation in front of the decoder; no name: the model's activation."""


def embeddings(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``BertEmbeddings.forward``, and ELECTRA's projection to the width of the blocks."""
    spec = f.spec
    width = spec.embedding_size or spec.hidden_size
    x = bert_embeddings(f, ids, width)
    if not spec.embedding_size:
        return x
    return f.linear("embeddings_project", x, (width, spec.hidden_size), bias=True)


def bert_embeddings(f: Forward, ids: Tensor, width: int) -> Tensor:
    """Tokens, token types (gathered from a buffer of zeros) and positions; norm; dropout."""
    spec = f.spec
    own_rows = spec.model_type in _COUNTED_POSITIONS
    positions = f.t.new(f.tokens, INDEX_BYTES) if own_rows else Tensor(f.seq, INDEX_BYTES, None)
    gathered = f.t.new(positions.numel, INDEX_BYTES)
    words = f.embedding("embed_tokens", ids, spec.vocab_size, width)
    words = f.how.method.embed(f, words)
    types = f.embedding(
        "token_type_embeddings", gathered.view(f.tokens), spec.type_vocab_size, width
    )
    x = f.add(words, types)
    places = f.embedding("position_embeddings", positions, spec.position_embedding_rows, width)
    x = f.add(x, places)
    x = f.layer_norm("embeddings.LayerNorm", x, width)
    return f.dropout(x, spec.embedding_dropout)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``BertLayer.forward``; a variable holds the attention weights until it ends."""
    x, _weights = self_attention(f, x)
    return feed_forward(f, x)


def self_attention(f: Forward, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """``BertAttention.forward``: attention, then norm(x + dropout(dense(…)))."""
    hidden = f.spec.hidden_size
    names = ("attention.self.query", "attention.self.key", "attention.self.value")
    out, weights = heads(f, x, names)
    dense = f.linear("attention.output.dense", out, (hidden, hidden), bias=True, split="row")
    dense = f.sublayer("attention", dense, x)
    dense = f.dropout(dense, f.spec.hidden_dropout)
    return f.layer_norm("attention.output.LayerNorm", f.add(dense, x), hidden), weights


def heads(f: Forward, x: Tensor, names: tuple[str, str, str]) -> tuple[Tensor, Tensor | None]:
    """Query, key and value projections, and attention's output and weights."""
    shape = (f.spec.hidden_size, f.spec.hidden_size)
    q, k, v = (relayout(f.t, f.linear(name, x, shape, bias=True, split="column")) for name in names)
    k, v = f.how.method.keys_values(f, k, v)
    return attend(f, (q, k, v))


def feed_forward(f: Forward, x: Tensor) -> Tensor:
    """``BertIntermediate`` and ``BertOutput``: norm(x + dropout(dense(act(dense(x)))))."""
    shape = (f.spec.hidden_size, f.spec.intermediate_size)
    inner = f.act(f.linear("intermediate.dense", x, shape, bias=True, split="column"))
    out = f.linear("output.dense", inner, shape[::-1], bias=True, split="row")
    out = f.sublayer("mlp", out, x)
    out = f.dropout(out, f.spec.hidden_dropout)
    return f.layer_norm("output.LayerNorm", f.add(out, x), shape[0])


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The masked-LM head and its loss over all positions; the encoder's output stays until then."""
    dense, norm, act = _HEADS[f.spec.model_type]
    hidden = transform(f, x, (dense, norm), act)
    return plain_loss(f, hidden, f.spec.embedding_size or f.spec.hidden_size)


def compose(spec: ModelSpec) -> Composition:
    """``BertForMaskedLM`` and the same of its relatives."""
    layers = spec.num_hidden_layers
    return Composition(
        segments=(
            Segment(name="embeddings", kind="embedding", run=embeddings, named=True),
            Segment(name="encoder.layer", kind="layer", run=layer, count=layers, first=0),
            Segment(name="cls", kind="head", run=head),
        ),
        shared=numbered,
    )
