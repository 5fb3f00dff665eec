"""Bytes in words: three digits and a unit of 1000."""

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def size(amount: float) -> str:
    """Write a number of bytes with three digits, in units of 1000: 1 GB is 10^9 bytes."""
    for unit, bytes_in_unit in UNITS:
        if amount >= bytes_in_unit:
            value = amount / bytes_in_unit
            return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{amount:.0f} B"


def two_sizes(first: int, second: int) -> tuple[str, str]:
    """Write two different numbers of bytes like `size`, or with all digits if they would read alike."""
    if size(first) != size(second):
        return size(first), size(second)
    return f"{first:,} bytes", f"{second:,} bytes"
