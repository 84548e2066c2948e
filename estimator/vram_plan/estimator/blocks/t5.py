"""T5 and its relatives (T5 1.1, Flan-T5, T0, mT5, umT5): pre-norm RMS norms, relative positions.

transformers 5.23.0 ``models/{t5,mt5,umt5}/modeling_*.py``, ``…ForConditionalGeneration``.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.encoder_parts import loss_of, nothing_shared
from vram_plan.estimator.blocks.t5_attention import ENCODED, MASK, attention, bias_name
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.elementwise import cast, scale
from vram_plan.estimator.ops.norm import t5_norm
from vram_plan.estimator.segment import Composition, Run, Segment
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

_BIASES = ("position_bias", "cross_bias")


def source_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The encoder's tokens; the decoder's lookup in the same table goes back first."""
    x = f.embedding("embed_tokens", ids, f.spec.vocab_size, f.spec.hidden_size, again="lookup")
    return _embedded(f, x)


def target_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The labels shifted right as the decoder's tokens; its causal mask."""
    shifted = f.t.new(f.tokens, INDEX_BYTES)
    x = f.embedding("embed_tokens", shifted, f.spec.vocab_size, f.spec.hidden_size)
    if f.how.attention == "eager":
        keys = f.seq + f.how.method.prefix_tokens
        f.produce(MASK, f.t.new(f.batch * f.seq * keys, x.itemsize))
    return _embedded(f, x)


def _embedded(f: Forward, x: Tensor) -> Tensor:
    """Dropout; a variable holds the lookup while the stack runs."""
    x = f.produce(f"{f.stack}.words", f.how.method.embed(f, x))
    return f.dropout(x, f.spec.embedding_dropout)


def _block(*, first: bool) -> Run:
    """``T5Block.forward``; ``first`` hands its position biases to the blocks after it."""

    def run(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
        x, bias, _weights = _attended(f, x, shared)
        if first:
            f.produce(bias_name(f, cross=False), bias)
        del bias
        if f.stack == "decoder":
            x, bias, _weights = _attended(f, x, shared, cross=True)
            if first:
                f.produce(bias_name(f, cross=True), bias)
            del bias
        return _fed(f, x)

    return run


_RUNS: dict[bool, Run] = {first: _block(first=first) for first in (True, False)}


def _attended(
    f: Forward, x: Tensor, shared: Mapping[str, Tensor], *, cross: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """X + dropout(attention(norm(x))); the position bias; the attention weights."""
    layer, name = (1, "EncDecAttention") if cross else (0, "SelfAttention")
    entered = norm(f, f"layer.{layer}.layer_norm", x)
    out, bias, weights = attention(f, f"layer.{layer}.{name}", entered, shared, cross=cross)
    out = _clamped(f, f.add(x, f.dropout(out, f.spec.hidden_dropout)))
    return out, bias, weights


def _fed(f: Forward, x: Tensor) -> Tensor:
    """``T5LayerFF``: x + dropout(dense(norm(x)))."""
    name = f"layer.{2 if f.stack == 'decoder' else 1}"
    entered = norm(f, f"{name}.layer_norm", x)
    out = _dense(f, f"{name}.DenseReluDense", entered)
    out = f.sublayer("mlp", out, entered)
    del entered  # the norm's variable is the dense part's output now
    return _clamped(f, f.add(x, f.dropout(out, f.spec.hidden_dropout)))


def _dense(f: Forward, name: str, x: Tensor) -> Tensor:
    """Up, activation (gated or plain), dropout, down; the input is cast to the weight's dtype."""
    spec = f.spec
    shape = (spec.hidden_size, spec.intermediate_size)
    if spec.is_gated_act:
        gate = f.act(f.linear(f"{name}.wi_0", x, shape, split="column"))
        up = f.linear(f"{name}.wi_1", x, shape, split="column")
        inner = f.dropout(f.mul(gate, up), spec.activation_dropout)
    else:
        inner = f.act(f.linear(f"{name}.wi", x, shape, split="column"))
        inner = f.dropout(inner, spec.activation_dropout)
    packed = f.how.quantization != "none"  # wo alone is not: `Forward.param`
    inner = cast(f.t, inner, f.how.norm_bytes if packed else f.how.weights_bytes)
    return f.linear(f"{name}.wo", inner, shape[::-1], split="row")


def norm(f: Forward, name: str, x: Tensor) -> Tensor:
    """``T5LayerNorm``."""
    width = f.spec.hidden_size
    return t5_norm(f.t, x, f.param(f"{name}.weight", width, "norm"), width)


def _clamped(f: Forward, x: Tensor) -> Tensor:
    """fp16 sums are clamped."""
    return f.act(x, "hardtanh") if x.itemsize == 2 and f.how.half else x


def encoder_end(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The encoder's last norm and dropout."""
    x = norm(f, "encoder.final_layer_norm", x)
    return f.produce(ENCODED, f.dropout(x, f.spec.hidden_dropout))


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The decoder's last norm and dropout, a scale (T5 1.0, umT5), ``lm_head``, the loss."""
    spec = f.spec
    x = f.dropout(norm(f, "decoder.final_layer_norm", x.moved()), spec.hidden_dropout)
    f.frame.leave()
    scaled = spec.model_type == "umt5" or (spec.model_type == "t5" and spec.tie_word_embeddings)
    # The decoder's outputs hold x while its scaled copy is projected.
    read = scale(f.t, x) if scaled else x
    with f.t.scope("logits"):
        return loss_of(f, f.head_linear(read, (spec.hidden_size, spec.vocab_size)))


def _stack(spec: ModelSpec, stack: str) -> tuple[Segment, ...]:
    """A stack's blocks: the first one makes the position biases that the others read."""
    decoder = stack == "decoder"
    count = spec.num_decoder_layers if decoder else spec.num_hidden_layers
    start = spec.num_hidden_layers if decoder else 0
    reads = (ENCODED, MASK) if decoder else ()
    alone = spec.model_type == "umt5"
    biases = () if alone else tuple(f"{stack}.{bias}" for bias in _BIASES)
    groups = [(0, count, False)] if alone else [(0, 1, True), (1, count - 1, False)]
    return tuple(
        Segment(
            name=f"{stack}.block",
            kind="layer",
            run=_RUNS[first],
            count=pieces,
            first=start + offset,
            stack="decoder" if decoder else "encoder",
            reads=reads if first else (*reads, *biases),
            holds=(f"{stack}.words",),
        )
        for offset, pieces, first in groups
        if pieces
    )


def compose(spec: ModelSpec) -> Composition:
    """``T5ForConditionalGeneration`` and the same of its relatives."""
    return Composition(
        segments=(
            Segment(
                name="encoder.embed_tokens", kind="embedding", run=source_embedding, stack="encoder"
            ),
            *_stack(spec, "encoder"),
            Segment(
                name="encoder.final_layer_norm",
                kind="norm",
                run=encoder_end,
                stack="encoder",
                holds=("encoder.words", "encoder.position_bias"),
            ),
            Segment(name="decoder.embed_tokens", kind="embedding", run=target_embedding),
            *_stack(spec, "decoder"),
            Segment(
                name="lm_head",
                kind="head",
                run=head,
                holds=(ENCODED,),
                framed=("decoder.words", MASK, *(f"decoder.{bias}" for bias in _BIASES)),
            ),
        ),
        shared=nothing_shared,
    )
