"""The component of a gradient goes with it: a head without a norm hands back one of the logits'."""

import warnings
from dataclasses import replace
from typing import Any

import pytest

from vram_plan.estimator import plan
from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Link, Shape, build_chain
from vram_plan.estimator.methods.lora import Lora
from vram_plan.estimator.simulate import simulate
from vram_plan.estimator.step import BACKWARD_LAST, moments
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import from_hf_config

Fields = dict[str, Any]
BATCH, SEQ, WIDTH = 8, 64, 64
BART: Fields = {
    "model_type": "bart",
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 128,
    "max_position_embeddings": 128,
}
PEGASUS = BART | {"model_type": "pegasus"}
OPT: Fields = {
    "model_type": "opt",
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "ffn_dim": 128,
    "vocab_size": 128,
    "word_embed_proj_dim": WIDTH,
    "do_layer_norm_before": False,
}


def chain(fields: Fields, checkpoint: str) -> tuple[Link, ...]:
    spec = from_hf_config(fields, name="toy")
    source = SEQ if spec.is_encoder_decoder else 0
    shape = Shape(batch=BATCH, seq=SEQ, source_seq=source, checkpoint=checkpoint)
    return build_chain(spec, compose(spec), Treatment(method=Lora(8, "all-linear")), shape)


@pytest.mark.parametrize("checkpoint", ["none", "full"])
def test_the_last_block_waits_with_the_head_s_gradient(checkpoint: str) -> None:
    """BART's norms are behind: the head's gradient enters the last block as it is."""
    links = chain(BART, checkpoint)
    *_, last, _head = links
    assert last.count == 1
    assert last.run is not None
    cost = last.cost
    other = simulate(replace(last.run, incoming="temporaries")).backward
    waits = 2 * BATCH * SEQ * WIDTH if checkpoint == "full" else 0
    assert cost.backward.get("logits", 0) == waits
    assert cost.backward.get("temporaries", 0) == other["temporaries"] - waits
    assert moments(links)[BACKWARD_LAST].inside == cost.backward


def test_only_the_last_of_several_blocks_gets_it() -> None:
    """Its moments are its own; the others share theirs."""
    *_, inner, last, head = chain(OPT, "full")
    assert (inner.count, last.count) == (OPT["num_hidden_layers"] - 1, 1)
    assert last.first == inner.first + inner.count
    assert head.cost.outgoing == "logits"
    assert last.cost.outgoing == inner.cost.outgoing == "temporaries"
    assert sum(inner.cost.backward.values()) == sum(last.cost.backward.values())


def test_a_norm_before_the_head_makes_a_gradient_of_its_own() -> None:
    """Pegasus ends in a norm: its blocks are as they were."""
    links = chain(PEGASUS, "full")
    assert links[-1].cost.outgoing == "temporaries"
    assert all(link.run is not None and link.run.incoming == "temporaries" for link in links)


@pytest.mark.filterwarnings("ignore")
def test_the_components_of_the_last_block_equal_the_trace() -> None:
    """With checkpoints the gradient is there while the block runs again."""
    pytest.importorskip("transformers")
    from vram_plan.bench.instants import instants_of
    from vram_plan.bench.trace import trace_step
    from vram_plan.bench.translate import trace_config

    made = plan(from_hf_config(BART, name="toy"), checkpointing="full", seq_len=SEQ, micro_batch=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = trace_step(trace_config(made.config, BART))
    seen = {one.name: one for one in instants_of(trace.events, trace.start_blocks)}
    theirs, ours = seen[BACKWARD_LAST], made.memory.ledger.components(BACKWARD_LAST)
    for component, nbytes in (theirs.components or {}).items():
        assert ours[component] == pytest.approx(nbytes, abs=theirs.bytes * 0.002), component
