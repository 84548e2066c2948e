"""How ZeRO 1 and 2 cut the flat weights, and whose part is the largest."""

from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise

__all__ = ["fullest_rank"]


def fullest_rank(numels: Sequence[int], ranks: int, besides: Collection[int] = ()) -> int:
    """The rank whose partition is the largest, weights that it cuts counted whole.

    A rank holds whole gradients of the weights that its partition cuts (DeepSpeed 0.19.8
    ``runtime/zero/stage_1_and_2.py`` ``get_partition_info``, ``copy_grads_in_partition``).

    Args:
        numels: elements of every trainable weight in the optimizer's order.
        ranks: partitions.
        besides: ranks that are not asked about.
    """
    size = max(1, -(-sum(numels) // (2 * ranks)) * 2)
    spans = [0] * ranks
    for begin, end in pairwise(accumulate(numels, initial=0)):
        if end > begin:
            for part in range(begin // size, (end - 1) // size + 1):
                spans[part] += end - begin
    return max(set(range(ranks)) - set(besides), key=lambda rank: spans[rank])
