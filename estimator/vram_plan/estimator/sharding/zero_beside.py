"""The reduce bucket of ZeRO 1 and 2 beside the backward pass: there from the first gradient on.

The first gradient of a step makes the bucket, wherever in the chain its weight is: behind the head
where that learns, in the first block where prompts do. Source: DeepSpeed 0.19.8
``deepspeed/runtime/zero/stage_1_and_2.py`` ``setup_buckets``, called by the hook of a gradient.
"""

from __future__ import annotations

from dataclasses import replace

from vram_plan.estimator.chain import Link
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.zero_parts import Shares

__all__ = ["with_bucket"]


def with_bucket(shares: Shares, bucket: Entry) -> tuple[Link, ...]:
    """The chain with the bucket beside every segment that goes back with it or after it."""
    last = shares.trained[-1] if shares.trained else None
    if last is None or not bucket.bytes:
        return shares.links
    found: list[Link] = []
    for index, link in enumerate(shares.links):
        if index < last.link:
            found.append(replace(link, beside_backward=(bucket,)))
        elif index > last.link:
            found.append(link)
        else:
            found += _where_it_is_made(link, bucket)
    return tuple(found)


def _where_it_is_made(link: Link, bucket: Entry) -> list[Link]:
    """The last of these segments goes back without it until its first gradient is there."""
    cost, before = link.cost, link.count - 1
    found = [replace(link, count=before, beside_backward=(bucket,))] if before else []
    first = link.first + before if link.first >= 0 else link.first
    made = replace(link, count=1, first=first)
    if sum(cost.later.values()) + bucket.bytes > sum(cost.backward.values()):
        made = replace(made, cost=replace(cost, backward=cost.later), beside_backward=(bucket,))
    return [*found, made]
