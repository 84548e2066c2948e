"""What a named GPU adds to what a fake device saw."""

from dataclasses import replace

from vram_plan.bench.measurement import Instant, Measurement
from vram_plan.bench.workspaces import with_workspaces
from vram_plan.estimator.planner import plan
from vram_plan.profiles.gpus import find_gpu

TWO = 2 * 8_519_680


def seen(device: str) -> Measurement:
    whole = Instant(name="forward", bytes=100, components={"weights": 100})
    untold = Instant(name="loss", bytes=50)
    return Measurement(
        outcome="ok",
        device=device,
        config={},
        model={},
        instants=(whole, untold),
        reserved_bytes=200,
    )


def test_every_instant_has_them() -> None:
    config = replace(plan("gpt2").config, gpu=find_gpu("a100-80gb-sxm"))
    found = with_workspaces(seen("fake"), config)
    assert [instant.bytes for instant in found.instants] == [100 + TWO, 50 + TWO]
    assert found.instants[0].components == {"weights": 100, "buffers": TWO}
    assert found.instants[1].components is None
    assert found.reserved_bytes == 200 + TWO


def test_without_a_gpu_and_on_real_devices_nothing_is_added() -> None:
    config = plan("gpt2").config
    assert with_workspaces(seen("fake"), config) == seen("fake")
    on_card = replace(config, gpu=find_gpu("a100-80gb-sxm"))
    assert with_workspaces(seen("cpu"), on_card) == seen("cpu")
