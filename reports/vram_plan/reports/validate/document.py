"""A validation as plain values: schema ``vram-plan/validate/1``."""

from __future__ import annotations

from typing import Any

from vram_plan.reports.validate.judge import Comparison
from vram_plan.reports.validate.outcomes import Outcome
from vram_plan.reports.validate.run import Validation
from vram_plan.reports.validate.summary import Spread, summarize

SCHEMA = "vram-plan/validate/1"


def to_document(found: Validation) -> dict[str, Any]:
    """The document; errors are predicted / measured − 1, those of the summary without sign."""
    return {
        "schema": SCHEMA,
        "rows": [_comparison(one) for one in found.comparisons],
        "outcomes": [_outcome(one) for one in found.outcomes],
        "skipped": [{"id": one.row.id, "reason": one.reason} for one in found.skipped],
        "invalid": [
            {"line": one.line, "column": one.column, "reason": one.reason} for one in found.invalid
        ],
        "summary": {name: _spread(one) for name, one in summarize(found.comparisons).items()},
    }


def _comparison(one: Comparison) -> dict[str, Any]:
    return {
        "id": one.row.id,
        "group": one.row.group,
        "quality": one.quality,
        "metric": one.metric,
        "measured": one.measured,
        "predicted": one.predicted,
        "error": round(one.error, 6),
    }


def _outcome(one: Outcome) -> dict[str, Any]:
    return {
        "id": one.row.id,
        "measured": one.row.outcome,
        "predicted_fits": one.predicted_fits,
        "usable_bytes": one.usable_bytes,
        "required_bytes": one.required_bytes,
    }


def _spread(one: Spread) -> dict[str, Any]:
    return {
        "n": one.n,
        "median": round(one.median, 6),
        "p90": round(one.p90, 6),
        "max": round(one.max, 6),
    }
