"""Sequence classification: an encoder whose head reads the first token alone.

transformers 5.23.0 ``modeling_bert.py`` ``BertPooler`` and ``BertForSequenceClassification``;
``RobertaClassificationHead`` has the same layers inside its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES, cross_entropy
from vram_plan.estimator.ops.elementwise import tanh
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Tape, Tensor
from vram_plan.profiles.model import ModelSpec

FAMILIES = ("bert", "electra", "roberta", "xlm-roberta")


def classify(composition: Composition, spec: ModelSpec) -> Composition:
    """The composition with a classifier in place of its language-model head.

    Raises:
        ValueError: if the architecture's classifier is not planned.
    """
    if spec.model_type not in FAMILIES:
        raise ValueError(
            f"--model {spec.name}: sequence classification is planned for {', '.join(FAMILIES)}, "
            f"not for {spec.model_type}"
        )
    kept = tuple(one for one in composition.segments if one.kind != "head")
    return replace(composition, segments=(*kept, Segment(name="classifier", kind="head", run=head)))


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """Dense layer and tanh on the first token, dropout, classifier, loss over the sequences."""
    f.frame.leave()
    hidden = f.spec.hidden_size
    first = _first_token(f.t, x, f.batch * hidden)
    pooled = tanh(f.t, f.linear("pooler.dense", first, (hidden, hidden), bias=True))
    pooled = f.dropout(pooled, f.spec.hidden_dropout)
    with f.t.scope("logits"):
        logits = f.linear("classifier", pooled, (hidden, f.spec.num_labels), bias=True)
        labels = Tensor(f.batch, INDEX_BYTES, None)
        return cross_entropy(f.t, logits, labels, autocast=f.how.autocast)


def _first_token(t: Tape, x: Tensor, numel: int) -> Tensor:
    """``x[:, 0]``: a view; its gradient fills a tensor of x's size."""
    full, itemsize = x.numel, x.itemsize
    out = Tensor(numel, itemsize, x.storage)
    return t.record(out, (x.node,), lambda grad: (t.new(full, itemsize),))
