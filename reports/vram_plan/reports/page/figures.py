"""Frames in, plotly figures out. Bytes come in, GiB are shown; axes carry their units."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

__all__ = [
    "COLOURS",
    "blank",
    "components",
    "errors_by",
    "memory_over_time",
    "pareto",
    "predicted_measured",
    "step_parts",
]

COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"),
)
"""Okabe and Ito's palette, told apart by colour-blind readers (https://jfly.uni-koeln.de/color/)."""
_GIB = 2**30
_BAND = 0.10
_LINE = 24
"""Characters."""


def predicted_measured(runs: pd.DataFrame) -> Figure:
    """Predicted against measured allocated bytes, with y = x and 10 % to both sides.

    Args:
        runs: of ``runs_frame``. Runs out of memory are hollow, at the device's capacity.
    """
    figure = blank("measured peak (GiB)", "predicted peak (GiB)")
    seen = runs[runs["predicted_bytes"].notna()]
    fitted = seen[seen["measured_bytes"].notna()]
    out = seen[(seen["outcome"] == "oom") & seen["capacity_bytes"].notna()]
    top = max([1.0, *fitted["measured_bytes"], *seen["predicted_bytes"]]) * 1.05 / _GIB
    _band(figure, top)
    for number, (method, some) in enumerate(fitted.groupby("method", sort=True)):
        _points(figure, some, "measured_bytes", str(method), number, hollow=False)
    if len(out):
        _points(figure, out, "capacity_bytes", "out of memory, at capacity", 5, hollow=True)
    return figure


def _band(figure: Figure, top: float) -> None:
    for factor, dash, name in ((1, "solid", "y = x"), (1 + _BAND, "dot", "±10 %")):
        figure.add_scatter(
            x=[0, top],
            y=[0, top * factor],
            mode="lines",
            name=name,
            legendgroup=name,
            line={"color": "#888888", "dash": dash, "width": 1},
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=[0, top],
        y=[0, top * (1 - _BAND)],
        mode="lines",
        legendgroup="±10 %",
        showlegend=False,
        line={"color": "#888888", "dash": "dot", "width": 1},
        hoverinfo="skip",
    )


def _points(
    figure: Figure, some: pd.DataFrame, column: str, name: str, number: int, *, hollow: bool
) -> None:
    figure.add_scatter(
        x=some[column] / _GIB,
        y=some["predicted_bytes"] / _GIB,
        mode="markers",
        name=escape(name),
        text=[escape(str(label)) for label in some["label"]],
        hovertemplate="%{text}<br>measured %{x:.3f} GiB<br>predicted %{y:.3f} GiB<extra></extra>",
        marker={
            "color": COLOURS[number % len(COLOURS)],
            "symbol": "circle-open" if hollow else "circle",
            "size": 9,
        },
    )


def components(frame: pd.DataFrame) -> Figure:
    """What fills the memory at the peak, predicted beside measured.

    Args:
        frame: of ``components_frame``.
    """
    figure = blank("GiB at the peak", "")
    names = list(dict.fromkeys(frame["component"]))
    for number, component in enumerate(names):
        some = frame[frame["component"] == component]
        figure.add_bar(
            x=some["bytes"] / _GIB,
            y=[
                [_wrapped(label) for label in some["label"]],
                [escape(str(side)) for side in some["side"]],
            ],
            orientation="h",
            name=escape(component.replace("_", " ")),
            marker={"color": COLOURS[number % len(COLOURS)]},
            hovertemplate="%{x:.3f} GiB<extra>%{fullData.name}</extra>",
        )
    bars = len(frame[["label", "side"]].drop_duplicates())
    figure.update_layout(barmode="stack", height=160 + 34 * bars)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def memory_over_time(timeline: pd.DataFrame, instants: dict[str, int] | None = None) -> Figure:
    """Samples of one run over time; predicted instants are lines.

    Args:
        timeline: of ``timeline_frame``.
        instants: name → predicted bytes.
    """
    figure = blank("seconds since the run began", "GiB")
    for number, (source, some) in enumerate(timeline.groupby("source", sort=False)):
        figure.add_scatter(
            x=some["seconds"],
            y=some["bytes"] / _GIB,
            mode="lines",
            name=escape(str(source)),
            line={"color": COLOURS[number % len(COLOURS)], "shape": "hv"},
            hovertemplate="%{x:.1f} s<br>%{y:.3f} GiB<extra>%{fullData.name}</extra>",
        )
    end = timeline["seconds"].max() if len(timeline) else 1.0
    for name, size in sorted((instants or {}).items(), key=lambda item: -item[1]):
        figure.add_scatter(
            x=[0, end],
            y=[size / _GIB] * 2,
            mode="lines",
            name=f"predicted: {escape(name.replace('_', ' '))}",
            line={"color": "#888888", "dash": "dot", "width": 1},
            hovertemplate="%{y:.3f} GiB<extra>%{fullData.name}</extra>",
        )
    return figure


def step_parts(parts: pd.DataFrame) -> Figure:
    """The predicted parts of a step, stacked.

    Args:
        parts: of ``parts_frame``.
    """
    figure = blank("seconds per optimizer step", "")
    for number, part in enumerate(dict.fromkeys(parts["part"])):
        some = parts[parts["part"] == part]
        figure.add_bar(
            x=some["seconds"],
            y=[_wrapped(label) for label in some["label"]],
            orientation="h",
            name=escape(str(part)),
            marker={"color": COLOURS[number % len(COLOURS)]},
            hovertemplate="%{x:.4g} s<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(barmode="stack", height=160 + 34 * parts["label"].nunique())
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def pareto(runs: pd.DataFrame) -> Figure:
    """Memory against throughput: nothing lies above and to the left of a run on the line.

    Args:
        runs: of ``runs_frame``.
    """
    figure = blank("peak memory (GiB)", "tokens per second, all GPUs")
    some = runs[runs["tokens_per_second"].notna()].copy()
    some["bytes"] = some["measured_bytes"].fillna(some["predicted_bytes"])
    some = some[some["bytes"].notna()].sort_values("bytes")
    best = some[some["tokens_per_second"] >= some["tokens_per_second"].cummax()]
    for name, frame, mode, colour in (
        ("all", some, "markers", COLOURS[0]),
        ("best for its memory", best, "lines+markers", COLOURS[5]),
    ):
        figure.add_scatter(
            x=frame["bytes"] / _GIB,
            y=frame["tokens_per_second"],
            mode=mode,
            name=name,
            text=[escape(str(label)) for label in frame["label"]],
            hovertemplate="%{text}<br>%{x:.3f} GiB<br>%{y:,.0f} tokens/s<extra></extra>",
            line={"color": colour, "shape": "hv"},
            marker={"color": colour, "size": 9},
        )
    return figure


def errors_by(runs: pd.DataFrame, stratum: str) -> Figure:
    """Signed errors of the prediction by a column of ``runs_frame``.

    Args:
        runs: of ``runs_frame``.
        stratum: a column: ``method``, ``engine``, ``gpu``, …
    """
    figure = blank(stratum.replace("_", " "), "predicted / measured − 1 (%)")
    for number, (name, some) in enumerate(runs[runs["error"].notna()].groupby(stratum)):
        figure.add_box(
            y=100 * some["error"],
            name=escape(str(name)),
            boxpoints="all",
            marker={"color": COLOURS[number % len(COLOURS)]},
            hovertemplate="%{y:.2f} %<extra></extra>",
        )
    figure.update_layout(showlegend=False)
    return figure


def _wrapped(label: str) -> str:
    """In lines short enough for the margin of a narrow screen."""
    lines = [""]
    for word in str(label).split(" · "):
        if lines[-1] and len(lines[-1]) + len(word) > _LINE:
            lines.append("")
        lines[-1] += (" · " if lines[-1] else "") + word
    return "<br>".join(map(escape, lines))


def blank(x: str, y: str) -> Figure:
    """An empty figure with axes named."""
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": -0.25},
        font={"family": "system-ui, sans-serif", "size": 13},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure
