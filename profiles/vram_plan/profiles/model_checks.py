"""What a `ModelSpec` refuses when it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vram_plan.profiles.model import ModelSpec

__all__ = ["POSITION_EMBEDDINGS", "QK_NORMS", "check"]

POSITION_EMBEDDINGS = ("rope", "learned", "sinusoidal", "alibi", "relative", "none")
QK_NORMS = ("none", "head", "per-head", "full")

# Far above any published model: a typing error must not become a loop over a billion layers.
_LIMITS = {
    "num_hidden_layers": 4096,
    "num_decoder_layers": 4096,
    "num_experts": 65_536,
    "vocab_size": 2**31,
    "decoder_vocab_size": 2**31,
    "max_position_embeddings": 2**31,
    "position_embedding_rows": 2**31,
    "sliding_window": 2**31,
}
_DEFAULT_LIMIT = 2**24
_AT_LEAST_ONE = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "num_hidden_groups",
    "inner_group_num",
    "decoder_sparse_step",
)
_AT_LEAST_ZERO = (
    "num_hidden_layers",
    "num_decoder_layers",
    "decoder_attention_heads",
    "decoder_intermediate_size",
    "decoder_vocab_size",
    "max_position_embeddings",
    "position_embedding_rows",
    "type_vocab_size",
    "num_labels",
    "embedding_size",
    "sliding_window",
    "relative_attention_num_buckets",
    "conv_kernel_size",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "first_k_dense_replace",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)
_SHARES = ("hidden_dropout", "attention_dropout", "embedding_dropout", "activation_dropout")


def check(spec: ModelSpec) -> None:
    """Refuse sizes that no transformer has.

    Raises:
        ValueError: naming the model, the field and the bound.
    """
    for field in _AT_LEAST_ONE:
        _check_range(spec, field, 1)
    for field in _AT_LEAST_ZERO:
        _check_range(spec, field, 0)
    for field in _SHARES:
        if not 0 <= getattr(spec, field) <= 1:
            raise ValueError(f"{spec.name}: {field} must be between 0 and 1")
    _check_choice(spec, "position_embedding_type", POSITION_EMBEDDINGS)
    _check_choice(spec, "qk_norm", QK_NORMS)
    _check_attention(spec)
    _check_layers(spec)
    _check_experts(spec)


def _check_range(spec: ModelSpec, field: str, least: int) -> None:
    value, most = getattr(spec, field), _LIMITS.get(field, _DEFAULT_LIMIT)
    if not least <= value <= most:
        # A number of thousands of digits cannot be printed, and need not be.
        got = f"{value:,}" if abs(value) < 10**30 else "a far larger number"
        raise ValueError(f"{spec.name}: {field} must be between {least:,} and {most:,}, got {got}")


def _check_choice(spec: ModelSpec, field: str, choices: tuple[str, ...]) -> None:
    value = getattr(spec, field)
    if value not in choices:
        raise ValueError(f"{spec.name}: {field} must be one of {', '.join(choices)}, got {value!r}")


def _check_attention(spec: ModelSpec) -> None:
    if spec.num_attention_heads % spec.num_key_value_heads:
        raise ValueError(
            f"{spec.name}: num_attention_heads ({spec.num_attention_heads}) must be a multiple "
            f"of num_key_value_heads ({spec.num_key_value_heads})"
        )
    if not 0 < spec.partial_rotary_factor <= 1:
        raise ValueError(f"{spec.name}: partial_rotary_factor must be above 0 and at most 1")
    if spec.is_latent and not (spec.qk_head_dim and spec.v_head_dim):
        raise ValueError(
            f"{spec.name}: latent attention (kv_lora_rank {spec.kv_lora_rank}) needs "
            "qk_nope_head_dim, qk_rope_head_dim and v_head_dim"
        )


def _check_layers(spec: ModelSpec) -> None:
    if spec.layer_types and len(spec.layer_types) != spec.num_hidden_layers:
        raise ValueError(
            f"{spec.name}: layer_types names {len(spec.layer_types)} layers, "
            f"num_hidden_layers says {spec.num_hidden_layers}"
        )
    if spec.num_hidden_layers + spec.num_decoder_layers < 1:
        raise ValueError(f"{spec.name}: num_hidden_layers must be at least 1")
    if spec.is_encoder_decoder and not spec.num_decoder_layers:
        raise ValueError(f"{spec.name}: an encoder-decoder needs num_decoder_layers")
    if spec.nominal_parameters is not None and spec.nominal_parameters < 1:
        raise ValueError(f"{spec.name}: nominal_parameters must be at least 1")


def _check_experts(spec: ModelSpec) -> None:
    if not spec.num_experts:
        return
    if not 1 <= spec.num_experts_per_tok <= spec.num_experts:
        raise ValueError(
            f"{spec.name}: num_experts_per_tok ({spec.num_experts_per_tok}) must be between 1 "
            f"and the number of experts ({spec.num_experts})"
        )
    if not spec.moe_intermediate_size:
        raise ValueError(f"{spec.name}: moe_intermediate_size must be at least 1")
