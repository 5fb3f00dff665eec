"""Numbers in words."""

import math


def digits(value: float | None) -> str:
    """A number with three significant digits, or all before the point if these are more; "–" for None."""
    if value is None:
        return "–"
    rounded = float(f"{abs(value):.3g}")  # 9.999 rounds to 10.0, with two digits before the point
    places = 2 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{value:,.{max(places, 0)}f}"
