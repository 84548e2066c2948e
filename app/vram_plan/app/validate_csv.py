"""A validation as CSV: one table, whose first column says what a line is."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Any

from vram_plan.reports.validate.document import to_document

if TYPE_CHECKING:
    from vram_plan.reports.validate.run import Validation

_SECTIONS = ("rows", "outcomes", "skipped", "invalid")
_COLUMNS = (
    "section",
    "id",
    "group",
    "quality",
    "metric",
    "measured",
    "predicted",
    "error",
    "predicted_fits",
    "usable_bytes",
    "required_bytes",
    "line",
    "column",
    "reason",
    "stratum",
    "n",
    "median",
    "p90",
    "max",
    "component",
    "name",
    "bytes",
    "alive",
    "formula",
    "source",
)


def show(found: Validation, *, worst: int, explain: bool) -> None:
    """Print the lines."""
    writer = csv.DictWriter(sys.stdout, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    document = to_document(found)
    for section in _SECTIONS:
        for values in document[section]:
            writer.writerow({"section": section, **values})
    for stratum, values in document["summary"].items():
        writer.writerow({"section": "summary", "stratum": stratum, **values})
    if explain and found.comparisons:
        for values in _ledger(found):
            writer.writerow({"section": "ledger", **values})


def _ledger(found: Validation) -> list[dict[str, Any]]:
    return [
        {
            "component": entry.component,
            "name": entry.name,
            "bytes": entry.bytes,
            "alive": ";".join(sorted(entry.alive)),
            "formula": entry.formula,
            "source": entry.source,
        }
        for entry in found.comparisons[0].plan.memory.ledger.entries
    ]
