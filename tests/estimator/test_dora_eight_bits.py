"""DoRA reads its weights whole: those of 8 bits come back in fp32."""

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.methods.dora import Dora
from vram_plan.estimator.tape import Param
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import from_hf_config

NUMEL = 64 * 32
FIELDS = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


def test_codes_are_scaled_twice_in_fp32() -> None:
    """Two products of fp32 at once, then the copy in the norm's dtype beside the second."""
    method = Dora(8, "all-linear")
    how = Treatment(method=method, quantization="int8")
    f = Forward(from_hf_config(FIELDS, name="toy"), how, batch=1, seq=1)
    f.params["q.weight"] = Param(name="q.weight", numel=NUMEL, itemsize=1, trainable=False)
    f.params["q.weight"].packed = True
    dense = method._dense_weight(f, "q", (64, 32), 2)
    assert f.t.meter.peak == 2 * 4 * NUMEL
    assert f.t.meter.live == dense.numel * dense.itemsize == 2 * NUMEL
