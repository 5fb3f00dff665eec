"""What the kit's sentences are made of: numbers in hexadecimal and decimal, words near an unknown one."""

import difflib
import re
from collections.abc import Iterable
from typing import Any


def number(value: Any) -> str:
    """A float as C's %a writes it, without the zeros at its end, and as a decimal: 0x1.8p+1 (3)."""
    value = float(value)
    return f"{re.sub(r'[.]?0*p', 'p', value.hex())} ({value:.9g})"


def excess(error: float | None, bound: float) -> str:
    """By how much a result is wrong; error: None if the result is not a finite number."""
    if error is None:
        return f"that is no finite number, and the bound is {bound:.3g}"
    if not bound:
        return f"the error is {error:.3g}, and none is allowed"
    return f"the error is {error:.3g}, {error / bound:.3g} times the bound {bound:.3g}"


def near(word: str, known: Iterable[str], most: int = 3) -> str:
    """The known words that are nearest, in any case, as the end of a sentence; nothing if none is near."""
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), names, most, 0.4)
    return f"; near it are {', '.join(names[name] for name in found)}" if found else ""
