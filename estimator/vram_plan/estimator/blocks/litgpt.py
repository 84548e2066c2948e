"""Decoders as lit-gpt writes them: one fused projection, fp32 norms and rotations, chunked logits.

Lightning-AI/litgpt @ 841970e4 ``lit_gpt/{model,lora,rmsnorm}.py``, ``finetune/lora.py``: the head
runs on chunks of 128 tokens, whose logits the training loop holds through the backward pass, in
fp32: Fabric casts what a module returns (Lightning-AI/pytorch-lightning 2.1
``lightning/fabric/plugins/precision/half.py`` ``convert_output``).
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import token_embedding
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.methods.llama_adapter import LlamaAdapter, LlamaAdapterV2, in_litgpt
from vram_plan.estimator.methods.lora import Lora
from vram_plan.estimator.ops import sdpa
from vram_plan.estimator.ops.activations import activation
from vram_plan.estimator.ops.attention import repeated
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES, cross_entropy
from vram_plan.estimator.ops.elementwise import (
    FP32_BYTES,
    add,
    cast,
    concat,
    copy,
    dropout,
    mul,
    narrow,
    scale,
)
from vram_plan.estimator.ops.linear import linear
from vram_plan.estimator.ops.rotary import rotate_half
from vram_plan.estimator.ops.slices import place
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Segment, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

CHUNK_TOKENS = 128
"""``lm_head_chunk_size`` of ``finetune/lora.py``."""
_PARTS = ("q_proj", "k_proj", "v_proj")


is_built = in_litgpt


def compose(spec: ModelSpec) -> Composition:
    """``lit_gpt.lora.GPT``."""
    return Composition(
        segments=(
            Segment(name="transformer.wte", kind="embedding", run=token_embedding),
            Segment(
                name="transformer.h", kind="layer", run=layer, count=spec.num_hidden_layers, first=0
            ),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=rope_cache,
    )


def rope_cache(f: Forward) -> dict[str, Shared]:
    """Tables of cos and sin of the longest sequence in fp32."""
    table = Shared(numel=f.seq * f.spec.rotary_dim, itemsize=FP32_BYTES)
    return {"cos": table, "sin": table}


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``Block.forward``."""
    normed = norm(f, "norm_1", x)
    attended = attention(f, normed, shared)
    if f.spec.use_parallel_residual:
        twice = f.spec.num_ln_in_parallel_attn == 2 or f.spec.model_type == "gpt_neox"
        return f.add(f.add(mlp(f, norm(f, "norm_2", x) if twice else normed), attended), x)
    x = f.add(attended, x)
    return f.add(mlp(f, norm(f, "norm_2", x)), x)


def norm(f: Forward, name: str, x: Tensor) -> Tensor:
    """``RMSNorm``, which stays in fp32 until the end, or ``torch.nn.LayerNorm``."""
    if f.spec.is_gated_act:
        return f.rms_norm_wide(name, x, f.spec.hidden_size)
    return f.layer_norm(name, x, f.spec.hidden_size)


def attention(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``CausalSelfAttention.forward``; values stay views of the fused projection."""
    spec = f.spec
    sizes = tuple(f.tokens * width for width in (spec.query_dim, spec.kv_dim, spec.kv_dim))
    q, k, v = split(f.t, projections(f, x), sizes)
    heads = f.heads()
    if heads.heads != heads.kv_heads:
        k, v, heads = repeated(f.t, k, v, heads)
    q, k = rotated(f, q, shared), rotated(f, k, shared)
    out = sdpa.sdpa(f.t, q, k, v, heads)
    del k, v
    if isinstance(f.how.method, LlamaAdapter):
        out = f.how.method.prompted(f, q, out.moved(), heads)
    del q
    # Laid out as q, heads first (PyTorch's flash attention makes ``empty_like(q)``): ``reshape``
    # copies it.
    out = copy(f.t, out)
    bias = spec.attention_out_bias
    return f.linear("self_attn.o_proj", out, (spec.query_dim, spec.hidden_size), bias=bias)


def projections(f: Forward, x: Tensor) -> Tensor:
    """``LoRAQKVLinear.forward``: a pair for the chosen parts, put in place among zeros."""
    spec, method = f.spec, f.how.method
    widths = (spec.query_dim, spec.kv_dim, spec.kv_dim)
    shape = (spec.hidden_size, sum(widths))
    if not isinstance(method, Lora):
        return f.linear("self_attn.attn", x, shape, bias=spec.attention_bias)
    out = f.base_linear("self_attn.attn", shape, spec.attention_bias, x)
    chosen = [
        width
        for name, width in zip(_PARTS, widths, strict=True)
        if method.matches(f, f"self_attn.{name}")
    ]
    if not chosen:
        return out
    rank = method.rank
    dropped = dropout(f.t, x, f.how.lora_dropout)
    down = f.added_param("self_attn.attn.lora_A", (rank * len(chosen), spec.hidden_size))
    up = f.added_param("self_attn.attn.lora_B", (sum(chosen), rank))
    reduced = linear(f.t, dropped, down, None, rank * len(chosen))
    # A convolution in groups: each part of the output reads its own rank channels.
    made = linear(f.t, narrow(f.t, reduced, f.tokens * rank), up, None, sum(chosen))
    if len(chosen) < len(_PARTS):
        made = place(f.t, made, f.tokens * sum(widths))
    return add(f.t, out, scale(f.t, made))


def rotated(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``apply_rope`` on the first part of every head; a ``cat`` puts the rest behind it."""
    t = f.t
    turning = x.numel * f.spec.rotary_dim // f.spec.head_dim
    first, rest = narrow(t, x, turning), narrow(t, x, x.numel - turning)
    turned = mul(t, first, shared["cos"])
    turned = add(t, turned, mul(t, rotate_half(t, first), shared["sin"]))
    return concat(t, (cast(t, turned, x.itemsize), rest))


def mlp(f: Forward, x: Tensor) -> Tensor:
    """``LLaMAMLP`` or ``GptNeoxMLP``."""
    spec, bias = f.spec, f.spec.mlp_bias
    shape = (spec.hidden_size, spec.intermediate_size)
    if not spec.is_gated_act:
        inner = f.linear("mlp.fc", x, shape, bias=bias)
        inner = activation(f.t, inner, "gelu", autocast=f.how.autocast)
        return f.linear("mlp.proj", inner, shape[::-1], bias=bias)
    gate = f.linear("mlp.gate_proj", x, shape, bias=bias)
    up = f.linear("mlp.up_proj", x, shape, bias=bias)
    inner = f.mul(f.act(gate), up)
    del gate, up
    return f.linear("mlp.down_proj", inner, shape[::-1], bias=bias)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the head in chunks, and ``chunked_cross_entropy`` over them."""
    t = f.t
    x = norm(f, "ln_f", x.moved())
    with t.scope("logits"):
        if f.how.loss != "chunked":
            logits = cast(t, project(f, x), FP32_BYTES)
            t.attach(logits.storage)
            return cross_entropy(t, logits, t.new(f.tokens, INDEX_BYTES))
        return _chunks(f, x)


def project(f: Forward, x: Tensor) -> Tensor:
    """``lm_head``; the second LLaMA-Adapter scales what it makes."""
    logits, method = projected(f, x), f.how.method
    if isinstance(method, LlamaAdapterV2):
        return method.scaled(f, "lm_head", logits.moved(), f.spec.vocab_size)
    return logits


def projected(f: Forward, x: Tensor) -> Tensor:
    """A linear layer like any other, so it is quantized with them."""
    spec = f.spec
    if f.how.quantization == "none":
        return f.head_linear(x, (spec.hidden_size, spec.vocab_size))
    weight = f.param("lm_head.weight", (spec.vocab_size, spec.hidden_size), "linear")
    weight.packed = True
    offset = f.param("lm_head.bias", spec.vocab_size, "bias") if spec.lm_head_bias else None
    return f.packed_product(x, weight, offset, spec.vocab_size)


def _chunks(f: Forward, x: Tensor) -> Tensor:
    t, width = f.t, x.numel // f.tokens
    lengths = [min(CHUNK_TOKENS, f.seq - at) for at in range(0, f.seq, CHUNK_TOKENS)]
    parts = split(t, x, tuple(f.batch * length * width for length in lengths))
    narrow_chunks = [project(f, part) for part in parts]
    chunks = [cast(t, chunk, FP32_BYTES) for chunk in narrow_chunks]
    del narrow_chunks
    losses = []
    for chunk, length in zip(chunks, lengths, strict=True):
        t.attach(chunk.storage)
        labels = t.new(f.batch * length, INDEX_BYTES)
        losses.append(cross_entropy(t, chunk, labels))
    return concat(t, tuple(losses))
