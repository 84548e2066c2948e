"""Llama and its relatives: pre-norm RMS norms, rotary embeddings, grouped keys, a gated MLP."""

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

from vram_plan.estimator.blocks.heads import causal_lm_loss, token_embedding
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops import fused
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.elementwise import relayout
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.segment import Composition, Run, Segment, Shared
from vram_plan.estimator.tape import Tape, Tensor
from vram_plan.profiles.model import ModelSpec

BOTH_MASKS = frozenset({"gemma2", "gemma3_text", "gpt_oss", "qwen2_moe"})
"""Models that make a mask with a window and one without, whichever their layers ask for."""

Attention = Callable[[Forward, Tensor, Tensor, Tensor], Tensor]
Rotate = Callable[[Tape, Tensor, Tensor, Tensor], Tensor]
Tables = Callable[[Forward], Mapping[str, Shared]]


def self_attention(
    f: Forward, x: Tensor, cos: Tensor, sin: Tensor, *, turn: Rotate = rotate
) -> Tensor:
    """``LlamaAttention.forward`` (Qwen2: with biases on q, k and v)."""
    entered = x
    q, k = query(f, x), key(f, x)
    v = value(f, x)
    if f.fuses("rope"):
        q, k = fused.rotate(f.t, q), fused.rotate(f.t, k)
    else:
        q, k = turn(f.t, q, cos, sin), turn(f.t, k, cos, sin)
    return attend(f, q, k, v, entered)


def decoder_layer(
    f: Forward, x: Tensor, cos: Tensor, sin: Tensor, *, attention: Attention = self_attention
) -> Tensor:
    """``LlamaDecoderLayer.forward``, transformers 5.23.0 ``models/llama/modeling_llama.py``."""
    residual = x
    x = f.rms_norm("input_layernorm", x, f.spec.hidden_size)
    x = attention(f, x, cos, sin)
    x = f.add(residual, x)
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, f.spec.hidden_size)
    x = gated_mlp(f, x)
    return f.add(residual, x)


def projected(f: Forward, name: str, x: Tensor, width: int) -> Tensor:
    """One of the three projections into attention, [batch, seq, width]."""
    bias = f.spec.attention_bias
    return f.linear(f"self_attn.{name}", x, (f.spec.hidden_size, width), bias=bias, split="column")


def query(f: Forward, x: Tensor) -> Tensor:
    """``q_proj``, seen as [batch, heads, seq, head_dim]."""
    return relayout(f.t, projected(f, "q_proj", x, f.spec.query_dim))


def key(f: Forward, x: Tensor) -> Tensor:
    """``k_proj``, likewise."""
    return relayout(f.t, projected(f, "k_proj", x, f.spec.kv_dim))


def value(f: Forward, x: Tensor) -> Tensor:
    """``v_proj``, likewise."""
    return relayout(f.t, projected(f, "v_proj", x, f.spec.kv_dim))


def attend(f: Forward, q: Tensor, k: Tensor, v: Tensor, entered: Tensor) -> Tensor:
    """Prefixes, the attention kernel and ``o_proj``.

    Behind a prefix ``key_states`` and ``value_states`` name the cache's copies from then on.
    """
    spec = f.spec
    k, v = f.how.method.keys_values(f, k.moved(), v.moved())
    out = f.attention(q, k, v, masked=is_masked(f), by_head=not q.by_token)
    shape = (spec.query_dim, spec.hidden_size)
    out = f.linear("self_attn.o_proj", out, shape, bias=spec.attention_out_bias, split="row")
    return f.sublayer("attention", out, entered)


def is_masked(f: Forward) -> bool:
    """Whether attention is given a mask.

    Eager attention always is; sdpa where a window is shorter than the sequence or keys of a
    prefix come before it; flash never.
    """
    if f.how.attention != "sdpa":
        return f.how.attention == "eager"
    windowed = f.spec.is_windowed(f.layer) and f.seq > f.spec.sliding_window
    return f.how.method.prefix_tokens > 0 or windowed


def gated_mlp(f: Forward, x: Tensor) -> Tensor:
    """``LlamaMLP.forward``: down(act(gate(x)) · up(x))."""
    spec, bias = f.spec, f.spec.mlp_bias
    shape = (spec.hidden_size, spec.intermediate_size)
    if f.fuses("swiglu"):
        inner = fused.swiglu(
            f.t,
            f.linear("mlp.gate_proj", x, shape, bias=bias, split="column"),
            f.linear("mlp.up_proj", x, shape, bias=bias, split="column"),
        )
    else:
        inner = f.mul(
            f.act(f.linear("mlp.gate_proj", x, shape, bias=bias, split="column")),
            f.linear("mlp.up_proj", x, shape, bias=bias, split="column"),
        )
    out = f.linear("mlp.down_proj", inner, shape[::-1], bias=bias, split="row")
    return f.sublayer("mlp", out, x)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.rms_norm("norm", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """One decoder layer."""
    return decoder_layer(f, x, shared["cos"], shared["sin"])


def rotary_tables(f: Forward, *, itemsize: int = 0) -> dict[str, Shared]:
    """Tables of cos and sin [1, seq, rotary_dim], position ids and the mask.

    cos and sin have the activations' dtype unless ``itemsize`` says another.
    """
    table = Shared(numel=f.seq * f.spec.rotary_dim, itemsize=itemsize or f.how.stream_bytes)
    ids = Shared(numel=f.seq, itemsize=INDEX_BYTES, saved=False)
    return {"cos": table, "sin": table, "position_ids": ids, **masks(f)}


def masks(f: Forward) -> dict[str, Shared]:
    """What attention is given, held by the model's forward: one for each kind of layer.

    Additive [batch, 1, seq, keys] for eager attention; booleans [1, 1, seq, keys] for sdpa where a
    window is shorter than the sequence or a prefix comes before it.
    """
    spec, found = f.spec, {}
    prefix = f.how.method.prefix_tokens
    scores = f.seq * (f.seq + prefix)
    asked = {spec.is_windowed(layer) for layer in range(spec.num_hidden_layers)}
    for windowed in {False, True} if spec.model_type in BOTH_MASKS else asked:
        given, layers = windowed in asked, layers_of(spec, windowed=windowed)
        name = "window_mask" if windowed else "mask"
        if f.how.attention == "eager":
            numel = f.batch * scores
            wide = f.how.stream_bytes
            found[name] = Shared(
                numel=numel, itemsize=wide, saved=False, given=given, layers=layers
            )
        elif f.how.attention == "sdpa" and (prefix or (windowed and f.seq > spec.sliding_window)):
            found[name] = Shared(numel=scores, itemsize=1, saved=False, given=given, layers=layers)
    return found


def layers_of(spec: ModelSpec, *, windowed: bool) -> tuple[int, ...]:
    """The layers with a window or those without, where a model has both."""
    layers = range(spec.num_hidden_layers)
    found = tuple(layer for layer in layers if spec.is_windowed(layer) == windowed)
    return found if len(found) < len(layers) else ()


def decoder(
    spec: ModelSpec,
    layer: Run,
    *,
    head: Run = head,
    embed: Run = token_embedding,
    shared: Tables = rotary_tables,
) -> Composition:
    """An embedding, layers and a head.

    Layers with and without a window are segments of their own: under sdpa they differ in memory.
    """
    return Composition(
        segments=(
            Segment(name="model.embed_tokens", kind="embedding", run=embed, named=True),
            *windowed_segments(spec, layer),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=shared,
    )


def windowed_segments(spec: ModelSpec, layer: Run) -> Iterator[Segment]:
    """The layers, cut where windowed and full ones meet."""
    kinds = groupby(range(spec.num_hidden_layers), key=spec.is_windowed)
    for _, group in kinds:
        layers = list(group)
        yield Segment(
            name="model.layers", kind="layer", run=layer, count=len(layers), first=layers[0]
        )


def compose(spec: ModelSpec) -> Composition:
    """``LlamaForCausalLM``, ``MistralForCausalLM``, ``Qwen2ForCausalLM``."""
    return decoder(spec, layer)
