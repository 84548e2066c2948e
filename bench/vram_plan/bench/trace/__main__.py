"""``python -m vram_plan.bench.trace --model-type llama --set hidden_size=1024 …``."""

import argparse
import ast
from dataclasses import fields
from typing import Any

from vram_plan.bench.trace import TraceConfig, trace_deep, trace_step

__all__ = ["main"]


def main() -> None:
    """Trace one step and print its peak."""
    parser = argparse.ArgumentParser(prog="python -m vram_plan.bench.trace")
    parser.add_argument("--model-type", default="llama")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", dest="shape")
    parser.add_argument("--lora", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--phase", help="print the peak of this phase")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--deep", action="store_true", help="extend shallow traces to all layers")
    parser.add_argument("--collapse", action="store_true", help="take all layers together")
    for field in fields(TraceConfig):
        if field.name not in ("config", "lora"):
            parser.add_argument("--" + field.name.replace("_", "-"), type=_value)
    options = vars(parser.parse_args())
    phase, rows = options.pop("phase"), options.pop("rows")
    collapse, deep = options.pop("collapse"), options.pop("deep")
    config = {"model_type": options.pop("model_type"), **_pairs(options.pop("shape"))}
    lora = _pairs(options.pop("lora"))
    given = {name: value for name, value in options.items() if value is not None}
    traced = TraceConfig(config=config, lora=lora, **given)
    if deep:
        extended = trace_deep(traced)
        print(
            f"peak {extended.peak_bytes:,} bytes ({extended.peak_phase}), {extended.seconds:.1f} s"
        )
        print(extended.phase_peaks, extended.components(phase))
        return
    trace = trace_step(traced)
    print(trace.summary())
    trace.print_peak(phase, rows, collapse=collapse)


def _pairs(items: list[str]) -> dict[str, Any]:
    return {name: _value(text) for name, _, text in (item.partition("=") for item in items)}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
