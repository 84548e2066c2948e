"""The ledger of inference: weights, the key-value cache and the working set of the prefill."""

from __future__ import annotations

from dataclasses import replace

from vram_plan.estimator.choices import BYTES
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry, Ledger
from vram_plan.estimator.rank import Passes, run_passes
from vram_plan.estimator.sharding.base import Rank, weights_entries
from vram_plan.profiles.model import ModelSpec

PREFILL, DECODE = "prefill", "decode"
GENERATION_SOURCE = "transformers 5.23.0 generation/utils.py: logits of the last position only"
CACHE_SOURCE = "transformers 5.23.0 cache_utils.py DynamicCache"


def inference_ledger(config: TrainConfig) -> tuple[Ledger, int, int]:
    """Weights and cache all the time; the prefill's and a decoding step's working sets."""
    passes = run_passes(config, keeps_gradients=False)
    rank = Rank(config=config, passes=passes)
    entries = [*_weights(rank), _cache(config)]
    entries.append(_working_set(passes, PREFILL, "the whole prompt"))
    one = run_passes(replace(config, seq_len=1, source_len=0, cp=1), keeps_gradients=False)
    entries.append(_working_set(one, DECODE, "one token of every sequence"))
    ledger = Ledger((PREFILL, DECODE), entries)
    return ledger, passes.inventory.numel(added=False), 0


def _weights(rank: Rank) -> list[Entry]:
    """Weights as held; ``--weights-dtype int8`` is uniform: one byte for every parameter."""
    config = rank.config
    if config.weights_dtype != "int8":
        return weights_entries(rank)
    numel = rank.passes.inventory.numel()
    return [
        Entry(
            component="weights",
            name="weights in int8",
            bytes=numel,
            formula=f"1 byte · {numel:,} parameters, uniformly",
            source="--weights-dtype int8",
            state=True,
        )
    ]


def kv_cache_elements(model: ModelSpec, tokens: int) -> int:
    """Cached elements per sequence of ``tokens``, over all layers.

    Keys and values: 2 · kv heads · head_dim a token and layer. Latent attention caches the latent
    and the rotated key: kv_lora_rank + qk_rope_head_dim (arXiv:2405.04434, table 1), as
    transformers 5.23.0 does (``models/deepseek_v3/modeling_deepseek_v3.py``). Windowed layers keep
    at most ``sliding_window`` tokens.
    """
    width = 2 * model.kv_dim
    if model.is_latent:
        width = model.kv_lora_rank + model.qk_rope_head_dim
    total = 0
    for layer in range(model.num_decoder_layers or model.num_hidden_layers):
        window = model.sliding_window if model.is_windowed(layer) else tokens
        total += width * min(tokens, window)
    return total


def _cache(config: TrainConfig) -> Entry:
    model, itemsize = config.model, BYTES[config.kv_dtype]
    decodes = model.is_causal or model.is_encoder_decoder
    elements = kv_cache_elements(model, config.seq_len) if decodes else 0
    if model.is_encoder_decoder:  # cross-attention caches the encoder's keys and values too
        elements += kv_cache_elements(model, config.source_len)
    heads = 1 if model.is_latent else min(config.tp, model.num_key_value_heads)
    split = heads * config.pp * config.cp
    return Entry(
        component="kv_cache",
        name=f"key-value cache of {config.micro_batch} × {config.seq_len:,} tokens",
        bytes=elements * config.micro_batch * itemsize // split,
        formula=f"{elements:,} elements a sequence · {itemsize} bytes / {split} ranks",
        source=CACHE_SOURCE,
    )


def _working_set(passes: Passes, instant: str, what: str) -> Entry:
    """The fullest moment of a forward pass that keeps nothing.

    The head is run on the last position only, so its share is one row of logits per sequence.
    """
    layers = [
        sum(link.cost.forward.values()) for link in passes.links if link.segment.kind != "head"
    ]
    return Entry(
        component="temporaries",
        name=f"working set for {what}",
        bytes=max(layers) + passes.shared + passes.passing + passes.inputs,
        formula="the fullest moment of one block's forward pass",
        source=GENERATION_SOURCE,
        alive=frozenset({instant}),
    )
