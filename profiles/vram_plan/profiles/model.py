"""The architecture of a model: what its parameters and its activations depend on."""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.profiles.model_checks import POSITION_EMBEDDINGS, QK_NORMS, check

__all__ = ["POSITION_EMBEDDINGS", "QK_NORMS", "ModelSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A transformer in Hugging Face's field names; 0 and empty mean "this model has none".

    The fields hold what the classes of transformers 5.23.0 *use*, not what a config happens to
    say: a multi-query Falcon has ``num_key_value_heads=1`` although its config repeats the number
    of heads. What a class always does (the kind of its norms, GPT-2's fused ``c_attn``, the sinks
    of gpt-oss, ALBERT's pooler) is not a field: it follows from ``model_type``.

    Attributes:
        name: What the user or the catalogue calls it.
        source: Where the figures were read: a URL, a path or a paper.
        note: A sentence for the output when the model is not an exact one, else empty.
        nominal_parameters: For size classes: weights count as exactly this many parameters.
        model_type: HF's string; selects the composition of a block. One is ours: ``chatglm1``
            (ChatGLM-6B, whose config says ``chatglm`` like that of its successors).
        torch_dtype: Data type of the published weights (``bfloat16``), or empty.
        quantization_method: ``quant_method`` of the published weights (``mxfp4``, ``fp8``).
        is_encoder_decoder: Has an encoder and a decoder (T5, BART, Marian).
        is_causal: A decoder language model; False for encoders (BERT) and encoder-decoders.
        hidden_size: Width of the residual stream.
        num_hidden_layers: Blocks; of the encoder when there is a decoder too.
        num_decoder_layers: Blocks of the decoder of an encoder-decoder.
        num_hidden_groups: ALBERT: sets of weights shared by the blocks.
        inner_group_num: ALBERT: blocks in a set.
        num_attention_heads: Query heads; of the encoder when there is a decoder too.
        num_key_value_heads: Key and value heads; 1 for multi-query attention.
        decoder_attention_heads: Query heads of the decoder of an encoder-decoder.
        head_dim: Width of a query and key head (latent attention has ``qk_head_dim`` instead).
        intermediate_size: Inner width of the dense feed-forward part.
        decoder_intermediate_size: The same in the decoder of an encoder-decoder.
        hidden_act: Activation function, HF's name.
        is_gated_act: The feed-forward part has a gate (two projections up, one down).
        vocab_size: Rows of the token embedding.
        decoder_vocab_size: Marian with separate vocabularies: rows of the decoder's embedding.
        embedding_size: Width of the token embedding where it is not ``hidden_size`` (OPT-350m's
            ``word_embed_proj_dim``, ELECTRA, ALBERT); then projections in (and out) exist.
        tie_word_embeddings: The head uses the token embedding's weight.
        lm_head_bias: The head has a bias.
        num_labels: Classes of a sequence classifier, 0 for a language model.
        scale_embedding: The embedding's output is multiplied by a factor (one more tensor).
        position_embedding_type: One of `POSITION_EMBEDDINGS`; ``relative`` is T5's bias and
            DeBERTa's distance embedding, ``alibi`` a bias computed from the distance.
        position_embedding_rows: Rows of the position table (``learned``: trained;
            ``sinusoidal``: a frozen parameter), offsets included (OPT: + 2).
        max_position_embeddings: The longest sequence the config declares, 0 if unlimited.
        partial_rotary_factor: Share of a head that the rotary embedding turns.
        relative_attention_num_buckets: Rows of the table of relative positions.
        pos_att_type: DeBERTa: the terms that use it, ``c2p`` and ``p2c``.
        share_att_key: DeBERTa: they use the projections of queries and keys.
        conv_kernel_size: DeBERTa: width of a convolution beside the first block.
        type_vocab_size: Rows of the token-type table.
        attention_bias: q, k and v projections have a bias.
        attention_out_bias: The projection out of attention has a bias.
        mlp_bias: The feed-forward projections have a bias (experts' too).
        norm_affine: Norms have weights (OLMo 1 has none).
        qk_norm: Norm on queries and keys, one of `QK_NORMS`: ``head`` shares one weight of
            ``head_dim`` between heads, ``per-head`` has one for each head, ``full`` normalises
            all heads together.
        clip_qkv: Queries, keys and values are clamped.
        do_layer_norm_before: Pre-norm (False: post-norm, as OPT-350m and BERT).
        use_parallel_residual: Attention and feed-forward read the same residual stream.
        num_ln_in_parallel_attn: Norms in front of a parallel block (1 is shared, 2 are separate).
        new_decoder_architecture: Falcon 40B and later.
        residual_from_layernorm: BLOOM: the residual branches off after the norm.
        sliding_window: Keys a query can see in a windowed layer, 0 for all.
        layer_types: ``full_attention`` or ``sliding_attention`` for each block; empty when all
            blocks are alike (windowed if ``sliding_window``).
        attn_logit_softcapping: Attention scores pass a tanh.
        final_logit_softcapping: Logits pass a tanh.
        num_experts: Routed experts of a sparse block.
        num_experts_per_tok: Experts a token passes.
        moe_intermediate_size: Inner width of one routed expert.
        shared_expert_intermediate_size: Inner width of all shared experts together.
        shared_expert_gate: The shared expert's output is gated by a linear to 1 (Qwen2-MoE).
        router_bias: The router has a bias that is trained (gpt-oss).
        first_k_dense_replace: This many first blocks are dense.
        decoder_sparse_step: After them every this many blocks one is sparse.
        mlp_only_layers: Further blocks that are dense.
        q_lora_rank: Latent attention: rank of the query, 0 when it is projected directly.
        kv_lora_rank: Latent attention: rank of key and value; 0 means ordinary attention.
        qk_nope_head_dim: Latent attention: width of a head without position.
        qk_rope_head_dim: Latent attention: width of the rotated part, shared by the heads.
        v_head_dim: Latent attention: width of a value head.
        hidden_dropout: Probability of dropout on what joins the residual stream.
        attention_dropout: Probability of dropout on attention probabilities.
        embedding_dropout: Probability of dropout after the embeddings.
        activation_dropout: Probability of dropout after the feed-forward activation.
    """

    name: str
    source: str = ""
    note: str = ""
    nominal_parameters: int | None = None
    model_type: str
    torch_dtype: str = ""
    quantization_method: str = ""
    is_encoder_decoder: bool = False
    is_causal: bool = True

    hidden_size: int
    num_hidden_layers: int
    num_decoder_layers: int = 0
    num_hidden_groups: int = 1
    inner_group_num: int = 1
    num_attention_heads: int
    num_key_value_heads: int
    decoder_attention_heads: int = 0
    head_dim: int
    intermediate_size: int
    decoder_intermediate_size: int = 0
    hidden_act: str = "silu"
    is_gated_act: bool = True

    vocab_size: int
    decoder_vocab_size: int = 0
    embedding_size: int = 0
    tie_word_embeddings: bool = False
    lm_head_bias: bool = False
    num_labels: int = 0
    scale_embedding: bool = False
    position_embedding_type: str = "rope"
    position_embedding_rows: int = 0
    max_position_embeddings: int = 0
    partial_rotary_factor: float = 1.0
    relative_attention_num_buckets: int = 0
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    conv_kernel_size: int = 0
    type_vocab_size: int = 0

    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    norm_affine: bool = True
    qk_norm: str = "none"
    clip_qkv: bool = False
    do_layer_norm_before: bool = True
    use_parallel_residual: bool = False
    num_ln_in_parallel_attn: int = 0
    new_decoder_architecture: bool = False
    residual_from_layernorm: bool = False
    sliding_window: int = 0
    layer_types: tuple[str, ...] = ()
    attn_logit_softcapping: bool = False
    final_logit_softcapping: bool = False

    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    shared_expert_gate: bool = False
    router_bias: bool = False
    first_k_dense_replace: int = 0
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0

    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    activation_dropout: float = 0.0

    def __post_init__(self) -> None:
        check(self)

    @property
    def query_dim(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * (self.qk_head_dim if self.is_latent else self.head_dim)

    @property
    def kv_dim(self) -> int:
        """Width of all key heads together (of the values too, but for latent attention)."""
        return self.num_key_value_heads * (self.qk_head_dim if self.is_latent else self.head_dim)

    @property
    def is_latent(self) -> bool:
        """Attention goes through a latent of rank ``kv_lora_rank`` (DeepSeek-V2, V3)."""
        return self.kv_lora_rank > 0

    @property
    def qk_head_dim(self) -> int:
        """Latent attention: width of a query and key head, both parts."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rotary_dim(self) -> int:
        """Turned part of a head: ``head_dim * partial_rotary_factor``, 0 without rotation."""
        if self.position_embedding_type != "rope":
            return 0
        return int((self.qk_rope_head_dim or self.head_dim) * self.partial_rotary_factor)

    @property
    def num_blocks(self) -> int:
        """Blocks of encoder and decoder together."""
        return self.num_hidden_layers + self.num_decoder_layers

    def is_sparse(self, layer: int) -> bool:
        """Whether block ``layer`` (from 0) has experts."""
        if not self.num_experts or layer < self.first_k_dense_replace:
            return False
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    @property
    def num_sparse_layers(self) -> int:
        """Blocks with experts."""
        return sum(self.is_sparse(layer) for layer in range(self.num_hidden_layers))

    def is_windowed(self, layer: int) -> bool:
        """Whether block ``layer`` (from 0) sees only the last ``sliding_window`` keys."""
        if not self.sliding_window:
            return False
        return not self.layer_types or self.layer_types[layer] != "full_attention"
