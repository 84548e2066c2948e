"""Methods that PEFT has not: what they keep equals what real modules of the cited papers keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Shape, build_chain
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.inventory import take_inventory
from vram_plan.estimator.methods.base import Method
from vram_plan.estimator.methods.bottleneck import FUSED_ADAPTERS, Fusion, Houlsby, Pfeiffer
from vram_plan.estimator.methods.mixed import Mam, UniPelt
from vram_plan.estimator.methods.moelora import EXPERTS, MoeLora
from vram_plan.estimator.tape import Leaf, Storage, Tensor
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import from_hf_config

torch = pytest.importorskip("torch")

BATCH, SEQ, HIDDEN, SIZE, RANK = 2, 128, 512, 64, 8
LAYERS, HEADS, INNER, PREFIX, WIDTH = 3, 8, 1024, 16, 32
LLAMA = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": 256,
}
SPEC = from_hf_config(LLAMA, name="small", source="test")
MAM = Mam(tokens=PREFIX, projection=WIDTH, size=SIZE)
UNIPELT = UniPelt(tokens=PREFIX, projection=WIDTH, size=SIZE, rank=RANK)


def rounded(nbytes: int) -> int:
    """As the allocator rounds."""
    return -(-nbytes // 512) * 512


def kept_by_torch(run: Callable[[], Any], inputs: tuple[Any, ...], weights: Any) -> int:
    """Bytes that autograd keeps, without inputs, weights and the result."""
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    known = [*inputs, *weights, *(out if isinstance(out, tuple) else (out,))]
    for tensor in known:
        found.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(rounded(storage.nbytes()) for storage in found.values())


def kept_on_tape(method: Method, run: Callable[[Forward, Tensor], tuple[Tensor, ...]]) -> int:
    """The same on the tape: bytes alive when all variables but inputs and results are gone."""
    f = Forward(SPEC, Treatment(method=method), batch=BATCH, seq=SEQ, layer=1)
    x = f.t.new(BATCH * SEQ * HIDDEN, 2)
    x.node = Leaf()
    results = run(f, x)
    known: set[Storage] = {t.storage for t in (x, *results) if t.storage is not None}
    return f.t.meter.live - sum(storage.nbytes for storage in known)


def hidden() -> Any:
    """A bf16 activation that requires a gradient."""
    return torch.randn(BATCH, SEQ, HIDDEN, dtype=torch.bfloat16, requires_grad=True)


class Bottleneck(torch.nn.Module):  # type: ignore[misc,name-defined]
    """``up(act(down(x))) · scaling`` (adapter-hub/adapters ``Adapter``)."""

    def __init__(self, act: Any, scaling: float = 1.0) -> None:
        super().__init__()
        self.down, self.up = torch.nn.Linear(HIDDEN, SIZE), torch.nn.Linear(SIZE, HIDDEN)
        self.act, self.scaling = act, scaling

    def forward(self, x: Any) -> Any:
        """The bottleneck's output without a residual."""
        return self.up(self.act(self.down(x))) * self.scaling


def gated(gate: Any, x: Any) -> Any:
    """``mean(sigmoid(linear(x)), dim=1)``."""
    return torch.mean(torch.sigmoid(gate(x)), dim=1)


def test_houlsby_keeps_what_a_real_adapter_keeps() -> None:
    """Sequential, with swish, around the sublayer's output."""
    x, module = hidden(), Bottleneck(torch.nn.functional.silu)
    real = kept_by_torch(lambda: (module(x.float()) + x).to(x.dtype), (x,), module.parameters())
    assert kept_on_tape(Houlsby(SIZE), lambda f, x: (f.sublayer("mlp", x, x),)) == real
    assert kept_on_tape(Houlsby(SIZE), lambda f, x: (f.sublayer("attention", x, x),)) == real


def test_pfeiffer_keeps_what_a_real_adapter_keeps() -> None:
    """Reads the output after the residual, is added to the output before it."""
    x, stream, module = hidden(), hidden().detach(), Bottleneck(torch.relu)

    def run() -> Any:
        return (module((x + stream).float()) + x).to(x.dtype)

    real = kept_by_torch(run, (x, stream), module.parameters())
    assert kept_on_tape(Pfeiffer(SIZE), lambda f, x: (f.sublayer("mlp", x, x),)) == real


def test_the_parallel_adapter_of_mam_keeps_what_a_real_one_keeps() -> None:
    """Reads what the feed-forward part reads."""
    x, module = hidden(), Bottleneck(torch.relu, 4.0)
    entered = hidden()

    def run() -> Any:
        return (x + module(entered.float())).to(x.dtype)

    def on_tape(f: Forward, x: Tensor) -> tuple[Tensor, ...]:
        entered = f.t.new(x.numel, 2)
        entered.node = Leaf()
        return f.sublayer("mlp", x, entered), entered

    real = kept_by_torch(run, (x, entered), module.parameters())
    assert kept_on_tape(MAM, on_tape) == real


class Fused(torch.nn.Module):  # type: ignore[misc,name-defined]
    """AdapterFusion (adapter-hub/adapters ``compose_fuse`` and ``BertFusion``)."""

    def __init__(self) -> None:
        super().__init__()
        made = [Bottleneck(torch.relu).requires_grad_(False) for _ in range(FUSED_ADAPTERS)]
        self.adapters = torch.nn.ModuleList(made)
        self.query, self.key = torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.Linear(HIDDEN, HIDDEN)
        self.value = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Any, stream: Any) -> Any:
        """Attention over the stacked outputs of frozen adapters."""
        query = (x + stream).float()
        stack = torch.stack([adapter(query) for adapter in self.adapters]).permute(1, 2, 0, 3)
        q, k, v = self.query(query), self.key(stack), self.value(stack)
        scores = torch.squeeze(torch.matmul(q.unsqueeze(2), k.transpose(-2, -1)), dim=2)
        weights = torch.nn.functional.softmax(scores / 1.0, dim=-1)
        context = torch.squeeze(torch.matmul(weights.unsqueeze(2), v), dim=2)
        return (context + x).to(x.dtype)


def test_fusion_keeps_what_a_real_fusion_keeps() -> None:
    """Queries, keys, values, their inputs and the softmax over the adapters."""
    x, stream, module = hidden(), hidden().detach(), Fused()
    real = kept_by_torch(lambda: module(x, stream), (x, stream), module.parameters())
    assert kept_on_tape(Fusion(SIZE), lambda f, x: (f.sublayer("mlp", x, x),)) == real


class Mixture(torch.nn.Module):  # type: ignore[misc,name-defined]
    """LoRAMoE's linear layer (github.com/Ablustrund/LoRAMoE ``peft/tuners/lora.py``)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.nn.Linear(HIDDEN, INNER, bias=False, dtype=torch.bfloat16)
        self.base.requires_grad_(False)
        self.route = torch.nn.Linear(HIDDEN, EXPERTS, bias=False)
        downs = [torch.nn.Linear(HIDDEN, RANK, bias=False) for _ in range(EXPERTS)]
        ups = [torch.nn.Linear(RANK, INNER, bias=False) for _ in range(EXPERTS)]
        self.downs, self.ups = torch.nn.ModuleList(downs), torch.nn.ModuleList(ups)

    def forward(self, x: Any) -> Any:
        """Every expert's output times its share."""
        result = self.base(x)
        wide = x.float()
        routes = torch.softmax(self.route(wide), dim=-1, dtype=torch.float32).to(x.dtype)
        for i in range(EXPERTS):
            share = routes[:, :, i].unsqueeze(-1)
            result = result + share * self.ups[i](self.downs[i](wide)) * 2.0
        return result.to(x.dtype)


def test_the_mixture_keeps_what_a_real_mixture_keeps() -> None:
    """Each expert's output, rank by rank, and the shares."""
    x, module = hidden(), Mixture()
    real = kept_by_torch(lambda: module(x), (x,), module.parameters())
    method = MoeLora(RANK, "all-linear")
    shape = (HIDDEN, INNER)
    assert kept_on_tape(method, lambda f, x: (f.linear("mlp.up_proj", x, shape),)) == real


class GatedLora(torch.nn.Module):  # type: ignore[misc,name-defined]
    """UniPELT's LoRA (adapter-hub/adapters ``LoRA`` with ``use_gating``)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.nn.Linear(HIDDEN, HIDDEN, bias=False, dtype=torch.bfloat16)
        self.base.requires_grad_(False)
        self.down = torch.nn.Linear(HIDDEN, RANK, bias=False)
        self.up = torch.nn.Linear(RANK, HIDDEN, bias=False)
        self.gate = torch.nn.Linear(HIDDEN, 1)

    def forward(self, x: Any) -> Any:
        """The update times one number a sequence."""
        result, wide = self.base(x), x.float()
        update = self.up(self.down(wide)) * gated(self.gate, wide).unsqueeze(-1) * 1.0
        return (result + update).to(x.dtype)


def test_the_gated_pair_of_unipelt_keeps_what_a_real_one_keeps() -> None:
    """The update and its gate."""
    x, module = hidden(), GatedLora()
    real = kept_by_torch(lambda: module(x), (x,), module.parameters())
    shape = (HIDDEN, HIDDEN)
    assert kept_on_tape(UNIPELT, lambda f, x: (f.linear("self_attn.q_proj", x, shape),)) == real


def test_the_gated_adapter_of_unipelt_keeps_what_a_real_one_keeps() -> None:
    """Pfeiffer's adapter times its gate."""
    x, stream = hidden(), hidden().detach()
    module, gate = Bottleneck(torch.relu), torch.nn.Linear(HIDDEN, 1)

    def run() -> Any:
        wide = (x + stream).float()
        return (module(wide) * gated(gate, wide).unsqueeze(-1) + x).to(x.dtype)

    real = kept_by_torch(run, (x, stream), [*module.parameters(), *gate.parameters()])
    assert kept_on_tape(UNIPELT, lambda f, x: (f.sublayer("mlp", x, x),)) == real


def test_the_gated_prefix_of_unipelt_keeps_what_a_real_one_keeps() -> None:
    """Prefixes times their gates, in front of keys and values."""
    x, gate = hidden(), torch.nn.Linear(HIDDEN, 2)
    shape = (BATCH, HEADS, PREFIX, HIDDEN // HEADS)
    first, second = (torch.randn(shape).bfloat16().requires_grad_() for _ in range(2))

    def run() -> tuple[Any, ...]:
        gates = gated(gate, x.float())
        keys = first * gates[:, 0].view(-1, 1, 1, 1)
        values = second * gates[:, -1].view(-1, 1, 1, 1)
        return keys, values

    def on_tape(f: Forward, x: Tensor) -> tuple[Tensor, ...]:
        f.cache["attention.entered"] = x
        UNIPELT.begin(f, "layer")
        return UNIPELT.prefix(f)

    real = kept_by_torch(run, (x,), gate.parameters())
    assert kept_on_tape(UNIPELT, on_tape) == real


def added(method: Method, *, trainable: bool | None = None) -> int:
    """Parameters the method adds to the small Llama."""
    chain = build_chain(SPEC, compose(SPEC), Treatment(method=method), Shape(batch=1, seq=8))
    inventory = take_inventory(chain)
    assert trainable or inventory.numel(trainable=True, added=False) == 0
    return inventory.numel(trainable=trainable, added=True)


def test_counts_follow_the_definitions() -> None:
    """Two matrices with biases an adapter; three matrices a fusion; encoder and gates besides."""
    one = 2 * HIDDEN * SIZE + HIDDEN + SIZE
    assert added(Houlsby(SIZE)) == 2 * LAYERS * one
    assert added(Pfeiffer(SIZE)) == LAYERS * one
    fusion = 3 * HIDDEN * HIDDEN + 2 * HIDDEN
    assert added(Fusion(SIZE)) == LAYERS * (fusion + FUSED_ADAPTERS * one)
    assert added(Fusion(SIZE), trainable=True) == LAYERS * fusion
    prefix = PREFIX * HIDDEN + HIDDEN * WIDTH + WIDTH + (WIDTH + 1) * LAYERS * 2 * HIDDEN
    assert added(MAM) == LAYERS * one + prefix
    pairs = 2 * (2 * HIDDEN * RANK + HIDDEN + 1)
    gates = 2 * (HIDDEN + 1) + HIDDEN + 1
    assert added(UNIPELT) == LAYERS * (one + pairs + gates) + prefix


def test_a_mixture_counts_router_and_experts() -> None:
    """Per linear layer: inputs · experts and experts · rank · (inputs + outputs)."""
    linears = [(HIDDEN, HIDDEN)] * 4 + [(HIDDEN, INNER)] * 2 + [(INNER, HIDDEN)]
    each = sum(i * EXPERTS + EXPERTS * RANK * (i + o) for i, o in linears)
    assert added(MoeLora(RANK, "all-linear")) == LAYERS * each
