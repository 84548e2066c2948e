"""Pieces that the families around GPT-2 share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from vram_plan.estimator.blocks.heads import token_embedding
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import repeat_kv
from vram_plan.estimator.ops.elementwise import copy
from vram_plan.estimator.ops.scores import LOW_BYTES, Written, written
from vram_plan.estimator.ops.sdpa import kernel_for, sdpa
from vram_plan.estimator.segment import Composition, Run, Segment, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

INDEX_BYTES = 8

Shareds = dict[str, Shared]
Inputs = Mapping[str, Tensor]
Sharing = Callable[[Forward], Mapping[str, Shared]]


def lent(x: Tensor) -> Tensor:
    """``x`` without its bytes: `Composition.shared` counts them while the model holds it."""
    return Tensor(x.numel, x.itemsize, None, x.node)


def model(
    spec: ModelSpec, names: tuple[str, str], runs: tuple[Run, Run, Run], shared: Sharing
) -> Composition:
    """Embedding, equal layers and head; ``names`` are the paths of embedding and layers."""
    embed, layer, head = runs
    count = spec.num_hidden_layers
    plain = embed is embed_tokens and not spec.embedding_dropout
    return Composition(
        segments=(
            Segment(name=names[0], kind="embedding", run=embed, named=plain),
            Segment(name=names[1], kind="layer", run=layer, count=count, first=0),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=shared,
    )


def attend(
    f: Forward,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    how: Written,
    mask: Tensor | None = None,
) -> Tensor:
    """The kernel of the configuration; ``eager`` as the class writes it.

    Flash attention lays its output out like the queries; where those come by heads, merging the
    heads copies.
    """
    heads, kernel = f.heads(), f.how.attention
    if kernel == "eager":
        how = replace(how, mask_bytes=f.how.stream_bytes, autocast=f.how.autocast)
        if f.how.method.prefix_tokens:  # behind their prefix (``cat``) keys lie by heads
            how = replace(how, copied=how.copied.strip("kv"))
        out, f.held = written(f.t, q, k, v, heads, how)
        return out
    if kernel == "sdpa" and mask is None and f.how.method.prefix_tokens:
        return masked_sdpa(f, q, k, v)
    if kernel == "sdpa":
        out = sdpa(f.t, q, k, v, heads, mask=mask)
        itemsize = LOW_BYTES if f.how.autocast else q.itemsize
        kernel = kernel_for(itemsize, heads, masked=mask is not None)
    else:
        out = f.attention(q, k, v)
    return copy(f.t, out) if kernel == "flash" and "q" not in how.copied else out


def attend_in_window(
    f: Forward, q: Tensor, k: Tensor, v: Tensor, how: Written, shared: Inputs
) -> Tensor:
    """`attend` where a sequence longer than the window hands ``sdpa`` a boolean mask."""
    if f.how.attention != "sdpa" or "window" not in shared:
        return attend(f, q, k, v, how)
    return masked_sdpa(f, q, k, v)


def masked_sdpa(f: Forward, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``sdpa`` with booleans [batch, 1, seq, keys]: for a window, or behind a prefix.

    Queries and keys differ in number there, so ``is_causal`` cannot say it (transformers 5.23.0
    ``masking_utils.py``, ``_ignore_causal_mask_sdpa``). With a mask keys and values are repeated
    first (``integrations/sdpa_attention.py``, ``use_gqa_in_sdpa``).
    """
    heads = f.heads()
    mask = Tensor(f.batch * heads.seq * heads.kv_seq, 1, None)
    if heads.kv_heads != heads.heads:
        k, v = repeat_kv(f.t, k, heads), repeat_kv(f.t, v, heads)
        heads = replace(heads, kv_heads=heads.heads)
    return sdpa(f.t, q, k, v, heads, mask=mask)


def window_mask(f: Forward) -> Shareds:
    """The mask of eager attention, or a boolean one (its batches share memory) for a window."""
    if f.how.attention == "sdpa" and 0 < f.spec.sliding_window < f.seq:
        keys = f.seq + f.how.method.prefix_tokens
        return {"window": Shared(numel=f.seq * keys, itemsize=1, saved=False)}
    return mask(f)


def embed_tokens(f: Forward, ids: Tensor, shared: Inputs) -> Tensor:
    """The lookup and its dropout; ``forward`` holds the lookup too."""
    x = token_embedding(f, ids, shared)
    if not f.spec.embedding_dropout:
        return x
    return f.dropout(lent(x), f.spec.embedding_dropout)


def embed_positions(f: Forward, ids: Tensor, shared: Inputs) -> Tensor:
    """Tokens plus learned positions; ``forward`` holds both until its last layer has run."""
    spec = f.spec
    inputs = lent(token_embedding(f, ids, shared))
    rows = spec.position_embedding_rows
    positions = lent(f.embedding("wpe", shared["position_ids"], rows, spec.hidden_size))
    x = f.add(inputs, positions)
    return f.dropout(x, spec.embedding_dropout)


def mask(f: Forward, *, always: bool = False) -> Shareds:
    """The causal mask [batch, 1, seq, keys], which fused kernels do without.

    Not sdpa behind a prefix: it has booleans, one sequence's for all.
    """
    prefix = f.how.method.prefix_tokens
    if f.how.attention == "sdpa" and prefix and not always:
        return {"mask": Shared(numel=f.seq * (f.seq + prefix), itemsize=1, saved=False)}
    if f.how.attention != "eager" and not always:
        return {}
    numel = f.tokens * (f.seq + prefix)
    return {"mask": Shared(numel=numel, itemsize=f.how.stream_bytes, saved=False)}


def rotary_tables(f: Forward, *, saved: bool = True) -> Shareds:
    """Tables of cos and sin [1, seq, rotary_dim] in the activations' dtype."""
    width = f.spec.rotary_dim or f.spec.head_dim
    table = Shared(numel=f.seq * width, itemsize=f.how.stream_bytes, saved=saved)
    return {"cos": table, "sin": table}


def position_ids(f: Forward, *, saved: bool = False) -> Shareds:
    """0, 1, 2 …: kept by a lookup of learned positions, else until the last layer has run."""
    return {"position_ids": Shared(numel=f.seq, itemsize=INDEX_BYTES, saved=saved)}


def held_embeddings(f: Forward) -> Shareds:
    """The token lookup, where dropout makes another tensor of it."""
    if not f.spec.embedding_dropout or not f.how.training:
        return {}
    return token_lookup(f)


def token_lookup(f: Forward) -> Shareds:
    """The looked-up tokens, a local variable; none where autograd holds them for their gradient."""
    method = f.how.method
    frozen = not method.trains("embed_tokens.weight", "embedding", -1)
    if method.virtual_tokens:
        return {}  # PEFT's variable holds them longer
    if f.input_gradients and frozen and not f.spec.embedding_size:
        return {}
    numel = f.tokens * f.spec.hidden_size
    return {"inputs_embeds": local(numel, f.how.stream_bytes)}


def local(numel: int, itemsize: int) -> Shared:
    """A local variable of the model's forward."""
    return Shared(numel=numel, itemsize=itemsize, saved=False, given=False)


def learned_positions(f: Forward) -> Shareds:
    """Position ids, and the two lookups that ``forward`` keeps as local variables."""
    hidden, itemsize = f.spec.hidden_size, f.how.stream_bytes
    learns = f.how.training and f.how.method.trains("wpe.weight", "position", -1)
    return {
        **position_ids(f, saved=learns),
        **token_lookup(f),
        "position_embeds": local(f.seq * hidden, itemsize),
        **mask(f),
    }


def plain_mlp(f: Forward, x: Tensor, names: tuple[str, str]) -> Tensor:
    """Up, activation, down, dropout; ``names`` are the paths of both projections."""
    spec, entered = f.spec, x
    shape = (spec.hidden_size, spec.intermediate_size)
    x = f.linear(names[0], x, shape, bias=spec.mlp_bias, split="column")
    x = f.act(x)
    x = f.linear(names[1], x, shape[::-1], bias=spec.mlp_bias, split="row")
    x = f.dropout(x, spec.hidden_dropout)
    return f.sublayer("mlp", x, entered)


def pre_norm_block(attention: Callable[[Forward, Tensor], Tensor]) -> Run:
    """A block as GPT-2 names and orders it, around a class's own ``attention``.

    ``GPT2Block.forward``, transformers 5.23.0 ``models/gpt2/modeling_gpt2.py``; GPT-Neo's and
    GPT-BigCode's are written alike.
    """

    def block(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
        hidden = f.spec.hidden_size
        residual = x
        x = f.layer_norm("ln_1", x, hidden)
        attended = attention(f, x)
        x = f.add(attended, residual)
        residual = x
        x = f.layer_norm("ln_2", x, hidden)
        forwarded = plain_mlp(f, x, ("mlp.c_fc", "mlp.c_proj"))
        return f.add(residual, forwarded)

    return block


HELD = "probabilities"


def holding_outputs(composition: Composition) -> Composition:
    """``outputs`` of the model's forward holds a block's probabilities until the next is through.

    ``outputs = block(…)``, whose second part they are: ``modeling_gptj.py`` and others of its age.
    """

    def holding(run: Run) -> Run:
        def kept(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
            out = run(f, x, shared)
            if f.held is not None:
                f.produce(HELD, f.held)
            return out

        return kept

    return replace(
        composition,
        segments=tuple(
            replace(s, run=holding(s.run), holds=(HELD,)) if s.kind == "layer" else s
            for s in composition.segments
        ),
    )


def without_sdpa(composition: Composition) -> Composition:
    """For classes without ``sdpa``: transformers gives them ``eager`` unless flash is asked for."""
    return _with_eager(composition, {"sdpa", "block-sparse"})


def only_eager(composition: Composition) -> Composition:
    """For classes that know no other kernel."""
    return _with_eager(composition, {"sdpa", "flash", "block-sparse"})


def _with_eager(composition: Composition, replaced: set[str]) -> Composition:
    """The composition with ``eager`` in place of the kernels that the class does not know."""
    segments = tuple(replace(s, run=_eagerly(s.run, replaced)) for s in composition.segments)

    def shared(f: Forward) -> Mapping[str, Shared]:
        _become_eager(f, replaced)
        return composition.shared(f)

    return Composition(segments=segments, shared=shared)


def _eagerly(run: Run, replaced: set[str]) -> Run:
    def eager(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
        _become_eager(f, replaced)
        return run(f, x, shared)

    return eager


def _become_eager(f: Forward, replaced: set[str]) -> None:
    if f.how.attention in replaced:
        f.how = replace(f.how, attention="eager")
