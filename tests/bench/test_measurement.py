"""What a measurement holds, and how a trace's events become the plan's instants."""

from dataclasses import dataclass

import pytest

from vram_plan.bench.instants import INNER_LAYERS, instants_of, labels
from vram_plan.bench.measurement import Instant, Measurement


@dataclass(frozen=True)
class Block:
    component: str
    bytes: int


@dataclass(frozen=True)
class Event:
    block: Block
    delta: int
    live: int
    phase: str
    where: str


def events(*steps: tuple[str, str, str, int]) -> list[Event]:
    """Phase, module, component and bytes of one change after the other."""
    found, live = [], 0
    for phase, where, component, delta in steps:
        live += delta
        found.append(Event(Block(component, abs(delta)), delta, live, phase, where))
    return found


STEP = events(
    ("forward", "model.embed_tokens", "activations", 1),
    ("forward", "model.layers.0.mlp", "activations", 10),
    ("forward", "model.layers.1.mlp", "activations", 10),
    ("forward", "model.layers.2.mlp", "activations", 10),
    ("forward", "model.norm", "activations", 1),
    ("forward", "lm_head", "logits", 5),
    ("loss", "loss", "logits", 5),
    ("backward", "", "temporaries", 3),
    ("backward", "lm_head.weight", "gradients", 2),
    ("backward", "model.layers.2.mlp", "activations", -10),
    ("backward", "model.layers.1.mlp", "activations", -10),
    ("backward", "", "gradients", 4),
    ("backward", "model.layers.0.mlp", "activations", -10),
    ("backward", "model.embed_tokens.weight", "gradients", 1),
    ("clip", "", "temporaries", 1),
    ("step", "", "temporaries", 7),
    ("zero_grad", "", "gradients", -7),
)


def test_events_take_the_plans_instants() -> None:
    assert labels(STEP) == [
        *["forward"] * 4,
        *["loss"] * 3,
        *["loss_backward"] * 2,
        "backward_last_layer",
        *[INNER_LAYERS] * 2,
        "backward_first_layer",
        "embedding_backward",
        "gradient_clipping",
        *["optimizer_step"] * 2,
    ]


def test_layers_that_share_a_module_are_one_instant() -> None:
    """ALBERT's: nothing in an event says which layer's turn it is."""
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    step = events(
        ("backward", "predictions.decoder.weight", "gradients", 1),
        ("backward", f"{layer}.ffn", "activations", -5),
        ("backward", f"{layer}.attention", "activations", -5),
        ("backward", f"{layer}.ffn", "activations", -5),
        ("backward", "albert.embeddings.word_embeddings.weight", "gradients", 1),
    )
    assert labels(step) == ["loss_backward", *[INNER_LAYERS] * 3, "embedding_backward"]


def test_an_instant_is_its_fullest_moment() -> None:
    found = {instant.name: instant for instant in instants_of(STEP, [Block("weights", 0)])}
    assert found["loss"].bytes == 42
    assert found["loss"].components == {"activations": 32, "logits": 10}
    assert found["loss_backward"].bytes == 47
    for instant in found.values():
        assert sum((instant.components or {}).values()) == instant.bytes
    assert next(iter(found)) == "forward"
    assert list(found)[-1] == "optimizer_step"


def test_the_peak_is_the_fullest_instant() -> None:
    seen = Measurement(
        outcome="ok", device="fake", config={}, model={}, instants=instants_of(STEP, [])
    )
    assert seen.peak is not None
    assert seen.peak.name == "loss_backward"
    assert seen.to_document()["memory"]["allocated_bytes"] == 47


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outcome": "fine"}, "outcome"),
        ({"device": "tpu"}, "device"),
        ({"outcome": "ok"}, "instants"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, str], said: str) -> None:
    given = {"outcome": "error", "device": "fake", "config": {}, "model": {}} | changes
    with pytest.raises(ValueError, match=said):
        Measurement(**given)  # type: ignore[arg-type]  # wrong on purpose


def test_components_are_the_plans() -> None:
    with pytest.raises(ValueError, match="unknown components stuff"):
        Instant(name="loss", bytes=1, components={"stuff": 1})
    with pytest.raises(ValueError, match="negative"):
        Instant(name="loss", bytes=-1)


def test_a_failed_run_says_nothing_of_memory() -> None:
    seen = Measurement(outcome="error", device="fake", config={}, model={}, error="no")
    memory = seen.to_document()["memory"]
    assert seen.allocated_bytes is None
    assert memory["components"] is None
    assert memory["model_states_bytes"] is None
