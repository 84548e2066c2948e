"""Sparse feed-forward parts: routers and experts as transformers 5.23.0 runs them by default.

The default experts implementation is ``grouped_mm`` (``modeling_utils.py``,
``get_correct_experts_implementation``; ``integrations/moe.py``): tokens are sorted by expert and
every projection is one grouped matrix product. A rank holds tokens · k rows whichever experts they
go to, so its memory does not depend on how balanced the routing is.

Expert parallelism divides the experts of a layer between ranks. A rank's rows then depend on the
routing; assumed is balance: each rank receives as many rows as it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

from vram_plan.estimator.blocks.heads import token_embedding
from vram_plan.estimator.blocks.llama import Attention, Tables, head, rotary_tables
from vram_plan.estimator.forward import LOW_BYTES, Forward
from vram_plan.estimator.ops.attention import softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast
from vram_plan.estimator.ops.experts import (
    INDEX_BYTES,
    add_in_place,
    divide_in_place,
    gather_bias,
    gather_rows,
    grouped_product,
    sort_by_expert,
    sum_chosen,
    sum_last,
    topk,
)
from vram_plan.estimator.ops.linear import linear
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Run, Segment
from vram_plan.estimator.tape import Param, Tensor
from vram_plan.profiles.model import ModelSpec

FeedForward = Callable[[Forward, Tensor], Tensor]
Gate = Callable[[Forward, Tensor], Tensor]


def router_logits(f: Forward, name: str, x: Tensor) -> Tensor:
    """``F.linear(x, weight, bias)`` of a router [experts, hidden]: not an ``nn.Linear``."""
    experts = f.spec.num_experts
    weight = f.param(f"{name}.weight", (experts, f.spec.hidden_size), "router")
    weight = f.how.method.weight(f, weight.name, weight)
    bias = f.param(f"{name}.bias", (experts,), "router") if f.spec.router_bias else None
    if f.how.autocast:
        x, weight = cast(f.t, x, LOW_BYTES), f.low(weight)
        bias = f.low(bias) if bias is not None else None
    return linear(f.t, x, weight, bias, experts, keeps=f.how.keeps_inputs)


def softmax_router(
    f: Forward, name: str, x: Tensor, *, renormalise: bool, narrow: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over all experts in fp32, then the largest: logits, weights, indices.

    Args:
        f: the forward pass.
        name: the router's module path.
        x: the tokens.
        renormalise: the chosen weights are divided by their sum, in place.
        narrow: they are cast back to the logits' dtype.
    """
    logits = router_logits(f, name, x)
    # Mixtral casts with ``.float()``, so even fp16 logits are copied; with ``dtype=`` fp16 is not.
    fused = f.how.half and narrow
    probabilities = softmax(f.t, logits, FP32_BYTES, half_to_float=fused)
    weights, index = topk(f.t, probabilities, f.tokens * f.spec.num_experts_per_tok)
    if renormalise:
        total = sum_last(f.t, weights, f.spec.num_experts_per_tok, wide=f.how.autocast)
        weights = divide_in_place(f.t, weights, total)
    if narrow:
        weights = cast(f.t, weights, logits.itemsize)
    return logits, weights, index


def grouped_experts(
    f: Forward, name: str, x: Tensor, index: Tensor, weights: Tensor, gate: Gate | None = None
) -> Tensor:
    """``grouped_mm_experts_forward``: sort, gather, two grouped products, weigh, put back, sum.

    Variables live as long as the function's own, hence the names that are not read again.
    """
    t, spec = f.t, f.spec
    experts = spec.num_experts // f.how.expert
    inner = spec.moe_intermediate_size // f.how.tensor
    pairs = f.tokens * spec.num_experts_per_tok
    up, down = f"{name}.gate_up_proj", f"{name}.down_proj"
    stacks = {
        up: (experts, 2 * inner, spec.hidden_size),
        down: (experts, spec.hidden_size, inner),
    }
    # PEFT's wrappers hold what they fold into a weight, and ``parametrize.cached()`` the result.
    factors = f.how.method.wraps(f, stacks)
    ids, order, offsets, counted = sort_by_expert(t, pairs, experts)
    rows = gather_rows(t, x, t.new(pairs, INDEX_BYTES), pairs * spec.hidden_size)
    chosen = gather_rows(t, weights, order, pairs)
    biases = _biases(f, f"{up}_bias", 2 * inner, ids)
    first = f.how.method.weight(f, up, f.param(up, stacks[up], "expert"), factors.get(up))
    out = _projection(f, first, rows, spec.hidden_size, (offsets, biases))
    out = (gate or halves)(f, out)
    second = f.how.method.weight(f, down, f.param(down, stacks[down], "expert"), factors.get(down))
    biases = _biases(f, f"{down}_bias", spec.hidden_size, ids)
    out = _projection(f, second, out, inner, (offsets, biases))
    weighted = f.mul(out, chosen)
    back = t.new(pairs, INDEX_BYTES)
    counter = t.new(pairs, INDEX_BYTES)
    del counter
    weighted = gather_rows(t, weighted, back, pairs * spec.hidden_size)
    summed = sum_chosen(t, weighted, spec.num_experts_per_tok, wide=f.how.autocast)
    result = cast(t, summed, x.itemsize)
    del ids, order, counted, rows, chosen, out, biases, weighted, back, summed, index, weights
    del first, second, factors
    return result


def _biases(f: Forward, name: str, width: int, ids: Tensor) -> Tensor | None:
    if not f.spec.mlp_bias:
        return None
    experts = f.spec.num_experts // f.how.expert
    return gather_bias(f.t, f.param(name, (experts, width), "expert"), ids)


def _projection(
    f: Forward,
    weight: Param,
    x: Tensor,
    inputs: int,
    groups: tuple[Tensor, Tensor | None],
) -> Tensor:
    """A grouped product in the weights' dtype (autocast does not know it), and the biases' rows."""
    offsets, biases = groups
    out = grouped_product(f.t, cast(f.t, x, weight.itemsize), weight, inputs, offsets)
    return out if biases is None else add_in_place(f.t, out, biases)


def halves(f: Forward, x: Tensor) -> Tensor:
    """``_default_apply_gate``: ``act(gate) * up`` of the two halves of x."""
    gate, up = split(f.t, x, (x.numel // 2, x.numel // 2))
    return f.mul(f.act(gate), up)


def gated_mlp(f: Forward, name: str, x: Tensor, width: int) -> Tensor:
    """``down_proj(act_fn(gate_proj(x)) * up_proj(x))`` under a module path: dense or shared."""
    shape, bias = (f.spec.hidden_size, width), f.spec.mlp_bias
    inner = f.mul(
        f.act(f.linear(f"{name}.gate_proj", x, shape, bias=bias, split="column")),
        f.linear(f"{name}.up_proj", x, shape, bias=bias, split="column"),
    )
    return f.linear(f"{name}.down_proj", inner, shape[::-1], bias=bias, split="row")


def prenorm_layer(
    f: Forward,
    x: Tensor,
    shared: Mapping[str, Tensor],
    attention: Attention,
    feed_forward: FeedForward,
) -> Tensor:
    """Norm, attention, residual, norm, feed-forward, residual: the layer of most sparse models."""
    residual = x
    x = f.rms_norm("input_layernorm", x, f.spec.hidden_size)
    x = attention(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, x)
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, f.spec.hidden_size)
    x = feed_forward(f, x)
    return f.add(residual, x)


def mixed_decoder(
    spec: ModelSpec, dense: Run, sparse: Run, *, shared: Tables = rotary_tables
) -> Composition:
    """An embedding, dense and sparse layers (windowed or not) in their order, and Llama's head."""
    return Composition(
        segments=(
            Segment(name="model.embed_tokens", kind="embedding", run=token_embedding, named=True),
            *_mixed_segments(spec, dense, sparse),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=shared,
    )


def _mixed_segments(spec: ModelSpec, dense: Run, sparse: Run) -> Iterator[Segment]:
    """The layers, cut where their kind changes."""
    kinds = groupby(
        range(spec.num_hidden_layers), key=lambda n: (spec.is_sparse(n), spec.is_windowed(n))
    )
    for (is_sparse, _), group in kinds:
        layers = list(group)
        yield Segment(
            name="model.layers",
            kind="layer",
            run=sparse if is_sparse else dense,
            count=len(layers),
            first=layers[0],
        )
