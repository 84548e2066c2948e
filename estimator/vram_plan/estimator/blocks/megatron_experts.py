"""A sparse decoder as Megatron-LM builds it: ``MoELayer`` in the place of the feed-forward part.

Megatron-LM @ d98e8a64 ``megatron/core/transformer/moe/moe_layer.py``. The norm in front of it is a
module of its own, since the router and the experts both read what it makes. Experts are grouped
products (``--moe-grouped-gemm``) unless ``--stack moe-grouped-gemm=0`` says otherwise, and tensor
ranks divide each of them unless ``--stack expert-tensor-parallel-size=N`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby

from vram_plan.estimator.blocks import megatron
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops import elementwise, megatron_allgather, megatron_alltoall
from vram_plan.estimator.ops import megatron as operators
from vram_plan.estimator.ops import megatron_experts as experts
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Tape, Tensor
from vram_plan.profiles.model import ModelSpec

Dispatch = Callable[[Tape, Tensor, Tensor, Tensor, experts.Routing], experts.Dispatched]
Combine = Callable[[Tape, Tensor, Tensor, experts.Routing], Tensor]


def is_built(spec: ModelSpec) -> bool:
    """Whether this composition stands for the architecture."""
    return megatron.is_plain(spec) and spec.num_experts > 0


def compose(spec: ModelSpec) -> Composition:
    """``GPTModel`` with sparse layers, and dense ones where the model has them."""
    first, _, last = megatron.compose(spec).segments
    return Composition(segments=(first, *_layers(spec), last), shared=megatron.rotary_frequencies)


def _layers(spec: ModelSpec) -> list[Segment]:
    """The layers, cut where their kind changes."""
    found = []
    for sparse, group in groupby(range(spec.num_hidden_layers), key=spec.is_sparse):
        numbers = list(group)
        run = layer if sparse else megatron.layer
        found.append(
            Segment(
                name="decoder.layers",
                kind="layer",
                run=run,
                count=len(numbers),
                first=numbers[0],
            )
        )
    return found


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``TransformerLayer`` with experts."""
    dropout = f.spec.hidden_dropout
    x = operators.dropout_add(f.t, megatron.self_attention(f, x), x, dropout)
    return operators.dropout_add(f.t, sparse_feed_forward(f, x), x, dropout)


def sparse_feed_forward(f: Forward, x: Tensor) -> Tensor:
    """``MoELayer.forward``: shared experts, routing, tokens to the experts and back."""
    spec = f.spec
    normed = operators.norm(f.t, x, megatron.norm_weights(f, "pre_mlp_layernorm"), spec.hidden_size)
    shared = _shared_experts(f, normed) if spec.shared_expert_intermediate_size else None
    routed = _routed_experts(f, normed)
    return routed if shared is None else elementwise.add(f.t, routed, shared)


def _routed_experts(f: Forward, x: Tensor) -> Tensor:
    """Routing, tokens to this rank's experts and back."""
    spec, t = f.spec, f.t
    ranks = megatron.split_of(f).ranks
    s = experts.Routing(
        tokens=max(f.tokens // ranks, 1),
        experts=spec.num_experts,
        chosen=spec.num_experts_per_tok,
        groups=f.how.expert,
        gathered=f.how.expert * f.how.expert_tensor,
    )
    router = f.param("mlp.router.weight", (spec.num_experts, spec.hidden_size), "router")
    logits = experts.gate(t, x, router)
    probabilities, routing_map = experts.choose(t, logits, s)
    del logits
    dispatch, combine = _dispatcher(f)
    reached = dispatch(t, x, probabilities, routing_map, s)
    del probabilities, routing_map
    out = _products(f, reached.rows, reached.weights)
    return combine(t, out, reached.index, s)


def _dispatcher(f: Forward) -> tuple[Dispatch, Combine]:
    if f.how.exchanges_tokens:
        return megatron_alltoall.dispatch, megatron_alltoall.combine
    return megatron_allgather.dispatch, megatron_allgather.combine


def _products(f: Forward, rows: Tensor, probabilities: Tensor) -> Tensor:
    """``TEGroupedMLP`` or ``SequentialMLP``: up, activation times the row's probability, down."""
    spec, t = f.spec, f.t
    own, width = spec.num_experts // f.how.expert, spec.moe_intermediate_size // f.how.expert_tensor
    wide = width * (2 if spec.is_gated_act else 1)
    up = f.param("mlp.experts.linear_fc1.weight", (own, wide, spec.hidden_size), "expert")
    made = experts.grouped_linear(t, rows, up)
    if spec.is_gated_act:
        made = experts.weighted_swiglu(t, made, probabilities)
    else:
        made = elementwise.mul(t, elementwise.from_input(t, made), probabilities)  # F.gelu
    down = f.param("mlp.experts.linear_fc2.weight", (own, spec.hidden_size, width), "expert")
    out = experts.grouped_linear(t, made, down)
    # ``SequentialMLP`` joins what its experts return; one expert's is returned as it is.
    return out if f.how.groups_experts or own == 1 else elementwise.copy(t, out)


def _shared_experts(f: Forward, x: Tensor) -> Tensor:
    """``SharedExpertMLP``: a dense feed-forward part for every token, behind a gate in some."""
    spec, split = f.spec, megatron.split_of(f)
    width = spec.shared_expert_intermediate_size // split.ranks
    wide = width * (2 if spec.is_gated_act else 1)
    up = megatron.linear_weights(
        f, "mlp.shared_experts.linear_fc1", (wide, spec.hidden_size), bias=spec.mlp_bias
    )
    made = operators.column_linear(f.t, x, up, split)
    made = operators.activate(f.t, made, f.tokens * width)
    down = megatron.linear_weights(
        f, "mlp.shared_experts.linear_fc2", (spec.hidden_size, width), bias=spec.mlp_bias
    )
    out = operators.row_linear(f.t, made, down, split)
    if not spec.shared_expert_gate:
        return out
    gate = f.param("mlp.shared_experts.gate_weight", (1, spec.hidden_size), "router")
    score = elementwise.from_output(f.t, experts.gate(f.t, x, gate))
    return elementwise.mul(f.t, out, score)
