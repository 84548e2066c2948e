"""BART and its relatives mBART, Pegasus and Marian (the Transformer of Vaswani et al., 2017).

transformers 5.23.0 ``models/{bart,mbart,pegasus,marian}/modeling_*.py``,
``…ForConditionalGeneration`` and ``MarianMTModel``. They differ in the place of the norms, in
their position tables (trained, or sinusoidal and frozen) and in a norm behind the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.encoder_parts import attend, causal_mask_bytes, loss_of
from vram_plan.estimator.blocks.gpt_parts import lent
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.elementwise import relayout, scale
from vram_plan.estimator.ops.embedding import LeafVariable, embedding
from vram_plan.estimator.segment import Composition, Segment, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

ENCODED, MASK = "encoder", "mask"
_NORMED_EMBEDDINGS = ("bart", "mbart")
_CLAMPED = ("mbart", "pegasus")
"""fp16 outputs of their encoder blocks are clamped."""


def source_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """Tokens and positions of the encoder; the decoder's lookup goes back first."""
    again = "" if f.spec.decoder_vocab_size else "lookup"
    words = f.embedding("embed_tokens", ids, f.spec.vocab_size, f.spec.hidden_size, again=again)
    if f.how.method.virtual_tokens and again and f.spec.model_type == "marian":
        # PEFT looks up in ``shared``; Marian names its encoder's table for the hook on lookups.
        words.node = None if isinstance(words.node, LeafVariable) else words.node
    words = f.how.method.embed(f, words)
    return _embedded(f, "encoder", words, rows=f.batch)


def target_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The labels shifted right, as tokens and positions of the decoder; its causal mask."""
    spec = f.spec
    shifted = f.t.new(f.tokens, INDEX_BYTES)
    if spec.decoder_vocab_size:
        rows, again = spec.decoder_vocab_size, "head" if spec.tie_word_embeddings else ""
        words = f.embedding("decoder.embed_tokens", shifted, rows, spec.hidden_size, again=again)
    else:
        words = f.embedding("embed_tokens", shifted, spec.vocab_size, spec.hidden_size)
    mask_itemsize = causal_mask_bytes(f, words.itemsize)
    if mask_itemsize:
        keys = f.seq + f.how.method.prefix_tokens
        f.produce(MASK, f.t.new(f.batch * f.seq * keys, mask_itemsize))
    return _embedded(f, "decoder", words, rows=1)


def _embedded(f: Forward, stack: str, words: Tensor, *, rows: int) -> Tensor:
    """Scaled tokens + positions, norm, dropout; variables hold both terms while the stack runs."""
    spec = f.spec
    words = _scaled(f, words.moved())
    places = _positions(f, stack, rows)
    f.produce(f"{stack}.words", words)
    f.produce(f"{stack}.positions", places)
    x = f.add(words, places)
    if spec.model_type in _NORMED_EMBEDDINGS:
        x = f.layer_norm(f"{stack}.layernorm_embedding", x, spec.hidden_size)
    return f.dropout(x, spec.embedding_dropout)


def _scaled(f: Forward, words: Tensor) -> Tensor:
    """Tokens times √width: BART's and mBART's lookup does it, so hooks on it see the product."""
    if f.spec.model_type not in _NORMED_EMBEDDINGS or not isinstance(words.node, LeafVariable):
        return scale(f.t, words)
    words.node = None
    out = scale(f.t, words)
    out.node = LeafVariable(out.storage)
    return out


def _positions(f: Forward, stack: str, rows: int) -> Tensor:
    """A trained table's offset ids are one row per sequence in the encoder, one in the decoder."""
    spec = f.spec
    name, shape = f"{stack}.embed_positions", (spec.position_embedding_rows, spec.hidden_size)
    if spec.position_embedding_type == "learned":
        return f.embedding(name, f.t.new(rows * f.seq, INDEX_BYTES), *shape)
    table = f.param(f"{name}.weight", shape, "position")
    table.trainable = False
    return embedding(f.t, Tensor(f.seq, INDEX_BYTES, None), table, spec.hidden_size)


def encoder_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``BartEncoderLayer.forward`` (mBART and Pegasus: norms in front)."""
    spec = f.spec
    x, _weights = _attended(f, x, "self_attn")
    x = _fed(f, x, spec.intermediate_size)
    if spec.model_type in _CLAMPED and f.how.half and not f.how.autocast:
        x = f.act(x, "hardtanh")
    return x


def decoder_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``BartDecoderLayer.forward``: attention to itself, to the encoder's output, feed-forward."""
    x, _weights = _attended(f, x, "self_attn", mask=shared.get(MASK))
    x, _weights = _attended(f, x, "encoder_attn", source=shared[ENCODED])
    return _fed(f, x, f.spec.decoder_intermediate_size)


def _attended(
    f: Forward, x: Tensor, name: str, *, source: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """X + dropout(attention(x)) with its norm in front or behind; and the attention weights."""
    spec = f.spec
    before, norm = spec.do_layer_norm_before, f"{name}_layer_norm"
    entered = f.layer_norm(norm, x, spec.hidden_size) if before else x
    out, weights = _attention(f, name, entered, source, mask)
    del entered
    out = f.dropout(out, spec.hidden_dropout)
    out = f.add(x, out)
    return out if before else f.layer_norm(norm, out, spec.hidden_size), weights


def _attention(
    f: Forward, name: str, x: Tensor, source: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``BartAttention.forward``: queries of x, keys and values of x or of the encoder's output."""
    width = f.spec.hidden_size
    q, k, v = (
        relayout(
            f.t,
            f.linear(f"{name}.{part}", read, (width, width), bias=True, split="column"),
        )
        for part, read in (("q_proj", x), ("k_proj", source or x), ("v_proj", source or x))
    )
    k, v = f.how.method.keys_values(f, k, v)
    out, weights = attend(f, (q, k, v), mask, **heads_shape(f, cross=source is not None))
    out = f.linear(f"{name}.out_proj", out, (width, width), bias=True, split="row")
    return f.sublayer("attention", out, x), weights


def heads_shape(f: Forward, *, cross: bool) -> dict[str, int]:
    """Heads of this stack; ``cross``: keys of the source."""
    spec = f.spec
    decoder = f.stack == "decoder"
    heads = spec.decoder_attention_heads if decoder else spec.num_attention_heads
    shape = {"heads": heads // f.how.tensor, "kv_heads": heads // f.how.tensor}
    if heads != spec.num_attention_heads:
        shape |= dict.fromkeys(("head_dim", "value_dim"), spec.hidden_size // heads)
    if cross:
        shape["kv_seq"] = f.source_seq
    return shape


def _fed(f: Forward, x: Tensor, inner: int) -> Tensor:
    """X + dropout(fc2(dropout(act(fc1(x))))) with its norm in front or behind."""
    spec, width = f.spec, f.spec.hidden_size
    before = spec.do_layer_norm_before
    entered = f.layer_norm("final_layer_norm", x, width) if before else x
    out = f.act(f.linear("fc1", entered, (width, inner), bias=True, split="column"))
    if not f.how.method.parallel:
        entered = lent(entered)  # the norm's variable has become the activation's
    out = f.dropout(out, spec.activation_dropout)
    out = f.linear("fc2", out, (inner, width), bias=True, split="row")
    out = f.sublayer("mlp", out, entered)
    del entered
    out = f.dropout(out, spec.hidden_dropout)
    out = f.add(x, out)
    return out if before else f.layer_norm("final_layer_norm", out, width)


def encoder_end(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The norm behind an encoder whose blocks have theirs in front."""
    if f.spec.do_layer_norm_before:
        x = f.layer_norm("encoder.layer_norm", x, f.spec.hidden_size)
    return f.produce(ENCODED, x)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The decoder's last norm, ``lm_head`` plus the frozen ``final_logits_bias``, the loss."""
    spec = f.spec
    x = x.moved()
    if spec.do_layer_norm_before:
        x = f.layer_norm("decoder.layer_norm", x, spec.hidden_size)
    f.frame.leave()
    rows = spec.decoder_vocab_size or spec.vocab_size
    with f.t.scope("logits"):
        return loss_of(f, f.add(_logits(f, x, rows), Tensor(rows, f.how.buffer_bytes, None)))


def _logits(f: Forward, x: Tensor, rows: int) -> Tensor:
    """``lm_head``; with two vocabularies it is tied to the decoder's table."""
    spec = f.spec
    if not (spec.decoder_vocab_size and spec.tie_word_embeddings):
        return f.head_linear(x, (spec.hidden_size, rows))
    outputs = -(-rows // f.how.tensor)
    weight = f.param("decoder.embed_tokens.weight", (outputs, spec.hidden_size), "head")
    return f.product(x, weight, None, outputs)


def _final_bias(f: Forward) -> dict[str, Shared]:
    """``final_logits_bias``, a buffer of the model."""
    rows = f.spec.decoder_vocab_size or f.spec.vocab_size
    return {"final_logits_bias": Shared(numel=rows, itemsize=f.how.buffer_bytes, buffer=True)}


def compose(spec: ModelSpec) -> Composition:
    """``BartForConditionalGeneration`` and the same of its relatives."""
    source, target = ("encoder.words", "encoder.positions"), ("decoder.words", "decoder.positions")
    return Composition(
        segments=(
            Segment(
                name="model.encoder.embed_tokens",
                kind="embedding",
                run=source_embedding,
                stack="encoder",
            ),
            Segment(
                name="model.encoder.layers",
                kind="layer",
                run=encoder_layer,
                count=spec.num_hidden_layers,
                first=0,
                stack="encoder",
                holds=source,
            ),
            Segment(
                name="model.encoder", kind="norm", run=encoder_end, stack="encoder", holds=source
            ),
            Segment(name="model.decoder.embed_tokens", kind="embedding", run=target_embedding),
            Segment(
                name="model.decoder.layers",
                kind="layer",
                run=decoder_layer,
                count=spec.num_decoder_layers,
                first=spec.num_hidden_layers,
                reads=(ENCODED, MASK),
                holds=target,
            ),
            Segment(
                name="lm_head", kind="head", run=head, holds=(ENCODED,), framed=(*target, MASK)
            ),
        ),
        shared=_final_bias,
    )
