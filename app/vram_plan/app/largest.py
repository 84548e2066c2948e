"""``--max-batch`` and ``--max-seq-len`` of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vram_plan.estimator.config import TrainConfig

_ASKED = {"max_batch": "micro_batch", "max_seq_len": "seq_len"}


def take_largest(values: dict[str, Any]) -> Callable[[TrainConfig], TrainConfig]:
    """Take the two flags out of the options; what makes a configuration as large as was asked.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    asked = [flag for flag in _ASKED if values.pop(flag, False)]
    if not asked:
        return lambda config: config
    flag, spelled = asked[0], "--" + asked[0].replace("_", "-")
    if len(asked) > 1:
        raise ValueError("--max-batch with --max-seq-len: one grows as the other shrinks; drop one")
    name = _ASKED[flag]
    if values.get(name) is not None:
        option = "--" + name.replace("_", "-")
        raise ValueError(f"{spelled} with {option} {values[name]}: drop one")
    if values.get("gpu") is None:
        raise ValueError(f"{spelled} needs --gpu: name the GPU that it has to fit")

    def enlarge(config: TrainConfig) -> TrainConfig:
        from vram_plan.estimator.search.largest import largest

        return largest(config, name)

    return enlarge
