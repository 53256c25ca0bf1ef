"""Grid lines of the drawings that are made without a library."""

import math


def round_step(largest: float, parts: int) -> float:
    """The smallest distance of grid lines that takes at most `parts` of them to reach `largest`: 1, 2 or 5 times a power of
    ten; 1 where there is nothing to reach."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest / parts))
    return next(power * m for m in (1, 2, 5, 10) if power * m * parts >= largest)
