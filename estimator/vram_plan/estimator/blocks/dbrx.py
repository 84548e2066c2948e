"""DBRX: one clamped projection for queries, keys and values; experts run one after another.

Its classes do not use transformers' experts interface, so the loop over experts is what runs.
Assumed is balanced routing: every expert gets tokens · k / experts rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import causal_lm_loss, token_embedding
from vram_plan.estimator.blocks.llama import is_masked, rotary_tables
from vram_plan.estimator.forward import LOW_BYTES, Forward
from vram_plan.estimator.ops.attention import batched_product, softmax
from vram_plan.estimator.ops.elementwise import cast, clamp, relayout
from vram_plan.estimator.ops.experts import INDEX_BYTES, gather_rows, topk
from vram_plan.estimator.ops.loop import Stack, index_add
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.ops.routing import divide_by_norm
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``DbrxBlock.forward``, transformers 5.23.0 ``models/dbrx/modeling_dbrx.py``."""
    residual, x = norm_attention_norm(f, x, shared)
    x = feed_forward(f, x)
    x = f.dropout(x, f.spec.hidden_dropout)
    return f.add(residual, x)


def norm_attention_norm(
    f: Forward, x: Tensor, shared: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """``DbrxNormAttentionNorm.forward``: the new residual and what the experts read."""
    residual = x
    x = norm(f, "norm_attn_norm.norm_1", x)
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.dropout(x, f.spec.hidden_dropout)
    x = f.add(x, residual)
    residual = x
    return residual, norm(f, "norm_attn_norm.norm_2", x)


def norm(f: Forward, name: str, x: Tensor) -> Tensor:
    """``LayerNorm`` without bias, cast back to its input's dtype."""
    return cast(f.t, f.layer_norm(name, x, f.spec.hidden_size, bias=False), x.itemsize)


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``DbrxAttention.forward``."""
    spec, entered, name = f.spec, x, "norm_attn_norm.attn"
    width = spec.query_dim + 2 * spec.kv_dim
    qkv = f.linear(f"{name}.Wqkv", x, (spec.hidden_size, width), split="column")
    qkv = clamp(f.t, qkv)
    q_size, kv_size = (f.tokens * n // f.how.tensor for n in (spec.query_dim, spec.kv_dim))
    q, k, v = split(f.t, qkv, (q_size, kv_size, kv_size))
    q, k, v = relayout(f.t, q), relayout(f.t, k), relayout(f.t, v)
    q, k = rotate(f.t, q, cos, sin), rotate(f.t, k, cos, sin)
    k, v = f.how.method.keys_values(f, k, v)
    out = f.attention(q, k, v, masked=is_masked(f))
    shape = (spec.query_dim, spec.hidden_size)
    out = f.linear(f"{name}.out_proj", out, shape, split="row")
    del qkv
    return f.sublayer("attention", out, entered)


def feed_forward(f: Forward, x: Tensor) -> Tensor:
    """``DbrxFFN.forward``; its router is an ``nn.Linear``."""
    spec = f.spec
    logits = f.linear("ffn.router.layer", x, (spec.hidden_size, spec.num_experts))
    weights, index = route(f, logits)
    out = looped_experts(f, x, index, weights)
    del logits
    return f.sublayer("mlp", out, x)


def route(f: Forward, logits: Tensor) -> tuple[Tensor, Tensor]:
    """``route_tokens_to_experts`` with ``moe_normalize_expert_weights`` of 1, its default."""
    chosen = f.tokens * f.spec.num_experts_per_tok
    scores = softmax(f.t, logits, logits.itemsize, half_to_float=False)
    weights, index = topk(f.t, scores, chosen)
    weights = divide_by_norm(f.t, weights, f.spec.num_experts_per_tok, wide=f.how.autocast)
    del scores
    return weights, index


def looped_experts(f: Forward, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """``DbrxExperts.forward``: a mask of int64, then expert by expert into one tensor of zeros."""
    t, spec = f.t, f.spec
    experts = spec.num_experts // f.how.expert
    size = (experts * spec.moe_intermediate_size // f.how.tensor, spec.hidden_size)
    out = t.new(x.numel, x.itemsize)
    mask = t.new(index.numel * (spec.num_experts + 1), INDEX_BYTES)
    names = ("w1", "v1", "w2")
    stacks = {n: Stack(t, f.param(f"ffn.experts.mlp.{n}", size, "expert"), experts) for n in names}
    rows = index.numel // spec.num_experts
    for _ in range(experts):
        # where(): row and column numbers are views of one tensor
        where = Tensor(rows, INDEX_BYTES, t.new(2 * rows, INDEX_BYTES).storage)
        up, gate, down = (stacks[n].slice() for n in ("v1", "w1", "w2"))
        states = expert(f, gather_rows(t, x, where, rows * spec.hidden_size), gate, up, down)
        states = f.mul(states, gather_rows(t, weights, where, rows))
        out = index_add(t, out, where, states)
    del mask
    return out


def expert(f: Forward, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """``DbrxExpertGLU.forward`` on one expert's rows."""
    rows = x.numel // f.spec.hidden_size
    width = rows * f.spec.moe_intermediate_size // f.how.tensor
    first = product(f, x, gate, width, f.spec.hidden_size)
    second = product(f, x, up, width, f.spec.hidden_size)
    first = f.act(first)
    inner = f.mul(first, second)
    return product(f, inner, down, rows * f.spec.hidden_size, width // max(1, rows))


def product(f: Forward, x: Tensor, weight: Tensor, numel: int, inner: int) -> Tensor:
    """``x.matmul(weight)``; under autocast both are cast every time, for neither is a leaf."""
    if f.how.autocast:
        x = cast(f.t, x, LOW_BYTES)
        with f.t.scope("temporaries"):
            weight = cast(f.t, weight, LOW_BYTES)
    return batched_product(f.t, x, weight, numel, inner)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.layer_norm("norm_f", x.moved(), f.spec.hidden_size, bias=False)
    return causal_lm_loss(f, x)


def compose(spec: ModelSpec) -> Composition:
    """``DbrxForCausalLM``; the load-balancing loss is off (``output_router_logits``)."""
    return Composition(
        segments=(
            Segment(name="transformer.wte", kind="embedding", run=token_embedding, named=True),
            Segment(
                name="transformer.blocks",
                kind="layer",
                run=layer,
                count=spec.num_hidden_layers,
                first=0,
            ),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=rotary_tables,
    )
