"""What every engine is given, and the entries that several of them write."""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.optimizers import States
from vram_plan.estimator.quantization import SOURCES, packed_bytes
from vram_plan.estimator.rank import Passes
from vram_plan.estimator.step import (
    CLIPPING,
    EMBEDDING_BACKWARD,
    FORWARD,
    OPTIMIZER_STEP,
    PASSES,
)
from vram_plan.estimator.tape import ROUNDING_BYTES

ACCUMULATE_SOURCE = "torch 2.13.0 torch/csrc/autograd/functions/accumulate_grad.h"
CLIP_SOURCE = "torch 2.13.0 torch/nn/utils/clip_grad.py _clip_grads_with_norm_"
STEP_INSTANTS = frozenset({CLIPPING, OPTIMIZER_STEP})
PASS_INSTANTS = frozenset(PASSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One rank of a run: its configuration, and its passes before states are sharded.

    Attributes:
        waiting: what a pipeline stage keeps of other micro-batches.
    """

    config: TrainConfig
    passes: Passes
    waiting: tuple[Entry, ...] = ()

    @property
    def trainable(self) -> int:
        """Trainable parameters held by this rank before data-parallel sharding."""
        return self.passes.inventory.numel(trainable=True)

    @property
    def frozen(self) -> int:
        """Frozen parameters held by this rank before data-parallel sharding."""
        return self.passes.inventory.numel(trainable=False)


def weights_entries(rank: Rank) -> list[Entry]:
    """Unsharded weights as held, quantized ones by their own rule."""
    inventory = rank.passes.inventory
    entries = [
        Entry(
            component="weights",
            name=f"{'trainable' if learns else 'frozen'} weights",
            bytes=inventory.nbytes(trainable=learns),
            formula=f"Σ numel · bytes over {inventory.tensors(trainable=learns):,} tensors "
            f"({inventory.numel(trainable=learns):,} parameters)",
            source="the model's architecture",
            state=True,
        )
        for learns in (True, False)
    ]
    return [*entries, *packed_entries(rank)]


def packed_entries(rank: Rank) -> list[Entry]:
    """Quantized weights with their scales."""
    config, inventory = rank.config, rank.passes.inventory
    kind, double_quant, group = config.quantization, config.double_quant, config.gptq_group_size
    total = sum(
        packed_bytes(kind, w.shape[1], w.shape[0], double=double_quant, group=group) * w.count
        for w in inventory.packed()
    )
    if not total:
        return []
    numel = sum(w.numel * w.count for w in inventory.packed())
    double = ", double quantization" if config.double_quant else ""
    return [
        Entry(
            component="weights",
            name=f"frozen weights in {config.quantization}{double}",
            bytes=round(total * inventory.scale),
            formula=f"{numel * inventory.scale:,.0f} parameters · {total / numel:.4f} bytes "
            "(codes and scales)",
            source=SOURCES[config.quantization],
            state=True,
        )
    ]


def gradient_entries(rank: Rank) -> list[Entry]:
    """Gradients as autograd leaves them: until the step, or through all of it when accumulated."""
    passes = rank.passes
    always = rank.config.grad_accum > 1
    nbytes = passes.inventory.nbytes(trainable=True)
    return [
        Entry(
            component="gradients",
            name="gradients of trainable weights",
            bytes=nbytes,
            formula=f"a gradient in each weight's dtype, {rank.trainable:,} parameters",
            source=ACCUMULATE_SOURCE,
            alive=frozenset() if always else STEP_INSTANTS,
            state=True,
        )
    ]


def optimizer_entries(states: States, config: TrainConfig) -> list[Entry]:
    """Optimizer states and the largest temporary of the step."""
    return [
        *state_entries(states, config),
        Entry(
            component="temporaries",
            name="temporaries of the optimizer step",
            bytes=states.step,
            formula=states.step_formula,
            source=states.source,
            alive=frozenset({OPTIMIZER_STEP}),
        ),
    ]


def state_entries(states: States, config: TrainConfig) -> list[Entry]:
    """Optimizer states."""
    return [
        Entry(
            component="optimizer_states",
            name="optimizer states",
            bytes=states.nbytes,
            formula=states.formula,
            source=states.source,
            state=True,
        ),
        paged_entry(states, config),
    ]


def paged_entry(states: States, config: TrainConfig) -> Entry:
    """States in managed memory: not PyTorch's, and moved to the host when the GPU is full.

    A device map's GPUs are one process's; elsewhere every rank of a node has its own.
    """
    ranks = 1 if config.engine == "device-map" else config.gpus_per_node
    return Entry(
        component="optimizer_states",
        name="optimizer states (paged)",
        bytes=states.paged * ranks,
        formula=f"{states.formula}; {states.paged:,} bytes a rank × {ranks} ranks of a node",
        source=states.source,
        state=True,
        place="host",
    )


def clipping_entry(rank: Rank) -> Entry:
    """A norm for every gradient tensor, each a block of its own."""
    tensors = rank.passes.inventory.tensors(trainable=True)
    return Entry(
        component="temporaries",
        name="norms of the gradients",
        bytes=tensors * ROUNDING_BYTES,
        formula=f"{tensors:,} scalars · {ROUNDING_BYTES} bytes",
        source=CLIP_SOURCE,
        alive=frozenset({CLIPPING}),
    )


def input_entries(rank: Rank) -> list[Entry]:
    """Token ids and labels, and the tensors that every layer reads."""
    passes = rank.passes
    return [
        Entry(
            component="buffers",
            name="buffers of the model",
            bytes=passes.buffers,
            formula="as the composition lists them",
            source="transformers 5.23.0 modeling code",
        ),
        Entry(
            component="activations",
            name="token ids and labels",
            bytes=passes.inputs,
            formula="8 bytes a token; labels are the token ids",
            source="the step's definition",
        ),
        Entry(
            component="activations",
            name="tensors shared by all layers (cos, sin, masks)",
            bytes=passes.shared - passes.opened,
            formula="as the composition lists them",
            source="transformers 5.23.0 modeling code",
            alive=PASS_INSTANTS - {EMBEDDING_BACKWARD},
        ),
        Entry(
            component="activations",
            name="tensors shared by all layers that nothing saves",
            bytes=passes.passing,
            formula="as the composition lists them",
            source="transformers 5.23.0 modeling code",
            alive=frozenset({FORWARD}),
        ),
        Entry(
            component="activations",
            name="activations waiting in host memory",
            bytes=passes.host * rank.config.gpus_per_node,
            formula=f"{passes.host:,} bytes a rank × {rank.config.gpus_per_node} ranks of a node",
            source="torch 2.13.0 torch/autograd/graph.py save_on_cpu",
            place="host",
        ),
    ]
