"""Layers of several kinds: models extended by their period against traces of the whole depth."""

from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_deep, trace_step
from vram_plan.bench.trace.depth import Cut, cut_layers

INNER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
}
MLA = {
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
#: Layers of several kinds: what is traced, and how.
KINDS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("gemma2", {"num_hidden_layers": 9, "sliding_window": 16}, (5, 7)),
    ("gemma3_text", {"num_hidden_layers": 20, "sliding_window": 16}, (8, 14)),
    ("gpt_oss", {"num_hidden_layers": 8, "num_local_experts": 4}, (4, 6)),
    ("mixtral", {"num_hidden_layers": 6, "num_local_experts": 4}, (3, 4)),
    (
        "deepseek_v3",
        {"num_hidden_layers": 11, "first_k_dense_replace": 3, "head_dim": 16, **MLA},
        (5, 6),
    ),
]


@pytest.mark.parametrize(("kind", "fields", "depths"), KINDS)
def test_layers_of_several_kinds(
    kind: str, fields: dict[str, Any], depths: tuple[int, ...]
) -> None:
    """A head, a period and a tail are found in the model itself."""
    shape = {"model_type": kind, **INNER, **fields}
    config = TraceConfig(config=shape, batch=2, seq=48, attention="eager")
    deep = trace_deep(config)
    assert deep.extended_from == depths
    whole = trace_step(config)
    assert deep.start_bytes == whole.start_bytes
    assert deep.phase_peaks == whole.phase_peaks
    assert deep.components() == whole.components()


@pytest.mark.parametrize(
    ("kinds", "cut"),
    [
        ("a" * 32, (1, 1, 1)),
        ("ab" * 13, (1, 2, 1)),
        ("sssssf" * 10 + "ss", (1, 6, 1)),
        ("ddd" + "m" * 58, (3, 1, 1)),
        ("lllf" * 12, (1, 4, 1)),
        ("a" * 12 + "b", (1, 1, 1)),
        ("a" * 4, None),
        ("abcdefgh", None),
        ("", None),
    ],
)
def test_cuts(kinds: str, cut: tuple[int, int, int] | None) -> None:
    found = cut_layers(kinds)
    assert (found and (found.head, found.period, found.tail)) == cut
    if found is not None:
        for depth in (found.short, found.long):
            kept = "".join(kinds[index] for index in found.kept(depth))
            for start in found.windows:
                if depth == found.long:
                    assert kept[:start] + kept[start + found.period :] == "".join(
                        kinds[index] for index in found.kept(found.short)
                    )
        assert found.short + found.more * found.period == len(kinds)


def test_a_cut_keeps_the_ends() -> None:
    cut = Cut(layers=62, head=1, period=6, tail=1)
    assert (cut.short, cut.long, cut.more) == (8, 14, 9)
    assert cut.kept(8) == [0, 1, 2, 3, 4, 5, 6, 61]
