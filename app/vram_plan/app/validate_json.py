"""A validation as JSON: schema ``vram-plan/validate/1`` (``schemas/validate.json``)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from vram_plan.reports.validate.document import to_document

if TYPE_CHECKING:
    from vram_plan.reports.validate.run import Validation


def show(found: Validation, *, worst: int, explain: bool) -> None:
    """Print the document; a row's plan beside it when asked."""
    document = to_document(found)
    if explain and found.comparisons:
        from vram_plan.app.json_format import ledger_document
        from vram_plan.app.json_format import to_document as plan_document

        plan = found.comparisons[0].plan
        document["plan"] = plan_document(plan) | {"ledger": ledger_document(plan)}
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
