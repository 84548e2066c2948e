"""Products in 8 bits: what Transformer Engine and torchao keep, counted by hand from their code."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator.eight import eight_product
from vram_plan.estimator.fp8 import Eight
from vram_plan.estimator.ops.megatron import Split
from vram_plan.estimator.ops.megatron_fp8 import norm_linear, row_linear
from vram_plan.estimator.planner import Plan, plan
from vram_plan.estimator.tape import Param, Tape, Tensor
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.models import resolve_model

MIB = 2**20
TOKENS, WIDTH, OUTPUTS = 4096, 1024, 2048
HOPPER, BLACKWELL = find_gpu("h100-80gb-sxm"), find_gpu("b200")


def planned(**options: Any) -> Plan:
    base = {"seq_len": 2048, "gpu": HOPPER, "engine": "megatron", "gpus": 8}
    return plan(resolve_model("llama-3.1-8b"), **base | options)


def entry(found: Plan, name: str) -> int:
    return sum(one.bytes for one in found.memory.ledger.entries if one.name == name)


def weight(name: str = "w", *, itemsize: int = 2) -> Param:
    return Param(
        name=name,
        numel=OUTPUTS * WIDTH,
        shape=(OUTPUTS, WIDTH),
        itemsize=itemsize,
        trainable=True,
    )


def kept_by(eight: Eight, *, ranks: int = 1, original: bool = False) -> tuple[int, int]:
    """Bytes that stay after a norm with a product by columns; after a product by rows."""
    found = []
    split = Split(ranks=ranks, sequence=ranks > 1)
    for rows in (False, True):
        t = Tape()
        x = t.new(TOKENS * WIDTH, 2)
        t.leaf(x)
        if rows:
            out = row_linear(t, x, (weight(),), split, eight, original=original)
        else:
            out = norm_linear(t, x, (), (weight(),), split, eight)
        found.append(t.meter.live - t_bytes(out) - t_bytes(x))
    return found[0], found[1]


def t_bytes(x: Tensor) -> int:
    return x.numel * x.itemsize


STATISTICS = TOKENS * 4
ONE = TOKENS * WIDTH


@pytest.mark.parametrize("transposes", [True, False])
def test_a_product_keeps_one_layout_of_its_input(transposes: bool) -> None:
    eight = Eight(recipe="te-current", transposes=transposes)
    columns, rows = kept_by(eight)
    assert columns == ONE + STATISTICS  # half of what 16 bits take
    assert rows == ONE
    assert kept_by(eight, original=True)[1] == 0  # attention keeps its output anyway
    assert kept_by(eight, ranks=4)[0] == ONE + STATISTICS  # the rows, which can be gathered


def test_scales_of_blocks_are_kept_too() -> None:
    eight = Eight(recipe="te-mxfp8")
    assert kept_by(eight) == (ONE + ONE // 32 + STATISTICS, ONE + ONE // 32)
    tiles = Eight(recipe="te-blockwise")
    assert kept_by(tiles)[1] == ONE + 4 * ONE // 128


def linear_weights(found: Plan) -> int:
    model = found.config.model
    hidden, wide, kv = model.hidden_size, model.intermediate_size, model.kv_dim
    block = hidden * (2 * hidden + 2 * kv) + 3 * hidden * wide
    return model.num_hidden_layers * block


SCALES = 4 * 32 * 512
"""Four linear layers in each of 32 blocks, a scale each."""


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"gpu": HOPPER}, 2.0),  # by rows, and transposed for the input's gradient
        ({"gpu": BLACKWELL}, 1.0),
        ({"gpu": HOPPER, "weights_dtype": "fp8"}, 1.0),  # the transposes beside the weights
        ({"gpu": BLACKWELL, "weights_dtype": "fp8"}, 0.0),
        ({"gpu": BLACKWELL, "fp8_recipe": "te-mxfp8"}, 2 * 33 / 32),
        ({"gpu": HOPPER, "fp8_recipe": "te-blockwise"}, 2.0),
        ({"gpu": None}, 2.0),
    ],
)
def test_copies_of_weights_under_megatron(options: dict[str, Any], copies: float) -> None:
    found = planned(precision="fp8", **options)
    expected = copies * linear_weights(found) + SCALES
    assert entry(found, "weights in 8 bits") == pytest.approx(expected, abs=1)
    sixteen = planned(gpu=options["gpu"])
    narrow = linear_weights(found) if options.get("weights_dtype") else 0
    difference = entry(sixteen, "trainable weights") - entry(found, "trainable weights")
    assert difference == narrow
    for name in ("main gradients", "fp32 master weights", "optimizer states"):
        assert entry(sixteen, name) == entry(found, name)


def test_megatron_saves_less_in_8_bits() -> None:
    """A block's inputs of qkv, fc1 and fc2: 1 byte where 16 bits take 2."""
    sixteen, eight = (planned(precision=one, micro_batch=4) for one in ("bf16", "fp8"))
    model = eight.config.model
    # Delayed scaling casts the input of attention's projection, which flash attention keeps too.
    per_token = 2 * model.hidden_size + model.intermediate_size - model.hidden_size
    saved = model.num_hidden_layers * 4 * 2048 * per_token
    instant = "loss"
    less = sixteen.memory.instants[instant] - eight.memory.instants[instant]
    held = entry(eight, "weights in 8 bits")
    assert less + held == pytest.approx(saved, rel=1e-3)
    current = planned(fp8_recipe="te-current", precision="fp8", micro_batch=4)
    more = current.memory.instants[instant] - eight.memory.instants[instant]
    assert more == pytest.approx(-model.num_hidden_layers * 4 * 2048 * model.hidden_size, rel=1e-3)


@pytest.mark.parametrize("compiled", [True, False])
def test_torchao_keeps_16_bits_and_casts_on_the_way(compiled: bool) -> None:
    eight = Eight(recipe="ao-tensorwise", transposes=False)
    t = Tape()
    x = t.new(ONE, 2)
    t.leaf(x)
    w = weight()
    held, t.meter.peak = t.meter.live, t.meter.live
    out = eight_product(t, eight, x, w, None, compiled=compiled)
    assert t.meter.live - held == t_bytes(out)
    casts = max(ONE * 9, ONE + w.numel * 9) if not compiled else 0
    made = ONE + w.numel + t_bytes(out)
    assert t.meter.peak - held == max(casts, made)


@pytest.mark.parametrize(
    ("recipe", "forward", "backward"),
    [
        ("ao-tensorwise", 37_748_740, 94_371_852),
        ("ao-rowwise", 37_765_120, 94_400_512),
    ],
)
def test_torchaos_own_step(recipe: str, forward: int, backward: int) -> None:
    """``Float8Linear`` of torchao 0.18.0, 1,024 to 2,048 over 4 · 1,024 tokens in bf16.

    Peaks of what its operators make on meta tensors, followed storage by storage (torch 2.13.0);
    the plan leaves scales out, of one element or one for each row.
    """
    t = Tape()
    x = t.new(4 * 1024 * 1024, 2)
    t.leaf(x)
    before = t.meter.live
    t.meter.mark()
    out = eight_product(
        t, Eight(recipe=recipe, transposes=False), x, weight(), None, compiled=False
    )
    assert t.meter.peak - before == pytest.approx(forward, rel=1e-3)
    assert t.meter.live - before == t_bytes(out)
    node, size, before = out.node, t_bytes(out), t.meter.live
    assert node is not None
    t.meter.mark()
    t.backward(node, out.numel, out.itemsize)
    fullest = sum(t.meter.fullest().values())
    assert fullest - before - size == pytest.approx(backward, rel=1e-3)


def test_transformer_engine_elsewhere_keeps_the_weight_until_it_went_back() -> None:
    eight = Eight(recipe="te-delayed", transposes=True)
    t = Tape()
    x = t.new(ONE, 2)
    t.leaf(x)
    held = t.meter.live
    w = weight()
    out = eight_product(t, eight, x, w, None, compiled=False)
    assert t.meter.live - held == t_bytes(out) + ONE + 2 * w.numel


def test_gathered_weights_are_half_as_large_under_fsdp() -> None:
    whole: dict[str, Any] = {"engine": "fsdp2", "compile": True, "weights_dtype": "fp32"}
    sixteen, eight, rows = (
        planned(**whole, **more)
        for more in (
            {},
            {"precision": "fp8"},
            {"precision": "fp8", "fp8_recipe": "ao-rowwise"},
        )
    )
    name = "all-gather output of this block"
    block = linear_weights(eight) // eight.config.model.num_hidden_layers
    norms = 2 * eight.config.model.hidden_size
    assert entry(rows, name) == entry(sixteen, name) == 2 * (block + norms)
    assert entry(eight, name) == block + 2 * norms
    for found in (eight, rows):
        assert entry(found, "trainable weights") == entry(sixteen, "trainable weights")


def test_delayed_scaling_has_histories() -> None:
    """Scales of three tensors and of two, and as many histories, each a tensor."""
    name = "scales and histories of delayed scaling"
    products = 32 * 4
    assert entry(planned(precision="fp8"), name) == products * 4 * 512  # histories of one value
    assert entry(planned(precision="fp8", fp8_recipe="te-current"), name) == 0
    alone = planned(engine="torch", gpus=1, precision="fp8", fp8_recipe="te-delayed")
    each = 2 * 512 + 4 * 1024 * (3 + 2)  # as Accelerate has them
    assert entry(alone, name) == 32 * 7 * each
    workspace = "cuBLAS workspace of Transformer Engine"
    assert entry(alone, workspace) == 32 * MIB
    assert entry(planned(engine="torch", gpus=1, precision="fp8"), workspace) == 0
