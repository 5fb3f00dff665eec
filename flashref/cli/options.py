"""The words of the command line, turned into values; a bad word gets one sentence."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flashref.storage.device import PRESETS, device_from_json
from flashref.types import Device, DomainError

Number = TypeVar("Number", int, float)


def fraction(word: str) -> float:
    """A share of the model's bytes: more than 0, at most 1."""
    value = _number(word, float, "a number such as 0.5")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"a share of the model must be more than 0 and at most 1, not {word}"
        )
    return value


def at_least(smallest: int) -> Callable[[str], int]:
    """Whole numbers from `smallest` on."""

    def whole(word: str) -> int:
        value = _number(word, int, "a whole number")
        if value < smallest:
            raise argparse.ArgumentTypeError(f"must be at least {smallest}, not {word}")
        return value

    return whole


def temperature(word: str) -> float:
    """Of sampling: finite, 0 or more."""
    value = _number(word, float, "a number such as 0.8")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"a temperature must be finite and at least 0, not {word}")
    return value


def ids(word: str) -> list[int]:
    """Token ids with commas between."""
    return [
        _number(part, int, "whole numbers with commas between, such as 3,17,96") for part in word.split(",")
    ]


def device(word: str) -> Device:
    """A preset's name, or a JSON file of a device."""
    if word in PRESETS:
        return PRESETS[word]
    path = Path(word)
    if not path.is_file():
        raise DomainError(f"--device {word}: neither a file nor a preset; use one of {', '.join(PRESETS)}")
    try:
        return device_from_json(path.read_bytes())
    except DomainError as error:
        raise DomainError(f"{path}: {error}; correct the file, or use a preset") from None


def _number(word: str, kind: Callable[[str], Number], wanted: str) -> Number:
    try:
        return kind(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from None
