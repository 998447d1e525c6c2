"""Whole layers in proportion to something: what the simple policies have in common."""

from collections.abc import Sequence


def proportional(weights: Sequence[int], total: int) -> list[int]:
    """Whole numbers that sum to ``total`` in proportion to ``weights`` (largest remainder).

    Every device with a weight gets at least one, as long as there are enough layers: a device
    that is connected for nothing costs a round trip per token.
    """
    sum_weights = sum(weights)
    if sum_weights == 0:
        weights, sum_weights = [1] * len(weights), len(weights)
    exact = [total * weight / sum_weights for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    for index, weight in enumerate(weights):
        if weight > 0 and counts[index] == 0 and max(counts) > 1:
            counts[counts.index(max(counts))] -= 1
            counts[index] = 1
    return counts
