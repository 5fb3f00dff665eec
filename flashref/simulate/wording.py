"""The fields of a configuration in words, for tables, sentences and plots."""

from typing import Any

from flashref.models.budget import Amount

ROWS = {"unbundled": False, "bundled": True}


def memory_text(memory: float | Amount) -> str:
    """A memory as it is asked for: "0.5", or "6GB"."""
    return f"{float(memory.number):.12g}{memory.unit}" if isinstance(memory, Amount) else f"{memory:g}"


def choice_text(field: str, value: Any) -> str:
    """Write a choice for a cell of a table, under a heading that names the field.

    Args:
        field: a field of a configuration.
        value: its value.

    Returns:
        The value in words, such as "0.5" or "bundled".
    """
    if field == "bundled":
        return next(word for word, bundled in ROWS.items() if bundled == value)
    if field == "memory":
        return memory_text(value)
    return "auto" if value is None else str(value)


def choice_phrase(field: str, value: Any) -> str:
    """Write a choice for a sentence, where no heading names the field.

    Args:
        field: a field of a configuration.
        value: its value.

    Returns:
        The choice in words, such as "0.5 of the model in memory" or "bundled rows".
    """
    text = choice_text(field, value)
    if field == "memory":
        return f"{text} in memory" if isinstance(value, Amount) else f"{text} of the model in memory"
    if field == "window":
        return "an automatic window" if value is None else f"a window of {text} token{'s' * (value != 1)}"
    phrases = {
        "device": f"on {text}",
        "order": f"neurons {'in natural order' if text == 'natural' else f'ordered by {text}'}",
        "max_gap": f"gaps of up to {text} bytes read over",
        "bundled": f"{text} rows",
    }
    return phrases.get(field, text)
