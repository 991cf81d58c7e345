"""How wide a sketch of a weight's gradient is."""

from __future__ import annotations


def sketch_width(shape: tuple[int, int], rank: int) -> int:
    """Random directions for a weight (m, n) and an adapter of `rank`: twice as many and 16, which is more than the 5 to 10
    beyond the rank that Halko et al. 2011 (arXiv 0909.4061) find enough; never more than there are dimensions."""
    return min(2 * rank + 16, *shape)
