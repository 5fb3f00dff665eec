"""Options of several commands, and the functions that turn their arguments into values.

An argument that cannot be used is refused with one sentence.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flashref.models.budget import Amount, parse_memory
from flashref.models.checkpoint import parse_activation
from flashref.storage.calibration import find_device
from flashref.storage.device import PRESETS, Device
from flashref.types import DomainError

Number = TypeVar("Number", int, float)
Parsed = TypeVar("Parsed")

HELD_OUT = "held_out.txt"


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """Add --device, which every command that needs a device has."""
    parser.add_argument(
        "--device",
        metavar="PRESET|FILE",
        default="paper_m1max_fig2b",
        help="the storage device: a JSON file (`flashref spec 50` has its fields, `flashref calibrate` "
        f"writes one), or one of {', '.join(PRESETS)} (default: %(default)s)",
    )


def fraction(word: str) -> float:
    """Read a share, which must be more than 0 and at most 1."""
    value = _number(word, float, "a number such as 0.5")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a share must be more than 0 and at most 1, not {word}")
    return value


def memory(word: str) -> float | Amount:
    """Read a share of the model's bytes, or bytes with a unit of 1000 (GB) or of 1024 (GiB)."""
    return _parsed(parse_memory, word)


def at_least(smallest: int) -> Callable[[str], int]:
    """Make a function that reads whole numbers from `smallest` on."""

    def whole(word: str) -> int:
        value = _number(word, int, "a whole number")
        if value < smallest:
            raise argparse.ArgumentTypeError(f"the number must be at least {smallest}, not {word}")
        return value

    return whole


def temperature(word: str) -> float:
    """Read the temperature of sampling, which must be finite and not negative."""
    value = _number(word, float, "a number such as 0.8")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"a temperature must be finite and at least 0, not {word}")
    return value


def activation(word: str) -> tuple[str, float]:
    """Read an activation that replaces the model's own: relu, or fatrelu:T with its tau T."""
    return _parsed(parse_activation, word)


def ids(word: str) -> list[int]:
    """Read token ids that are separated by commas."""
    try:
        return [int(part) for part in word.split(",")]
    except ValueError:
        wanted = "token ids separated by commas, such as 3,17,96"
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from None


def device(word: str) -> Device:
    """Find a device: the name of a preset, or a JSON file of a device or of a calibration."""
    return find_device(word)


def check_new_file(option: str, path: Path | None) -> None:
    """Find at the start what would keep a file from being written at the end.

    Args:
        option: the option that names the file, for the message.
        path: the file; None: the option was not given.

    Raises:
        DomainError: the file exists, or its folder cannot be written.
    """
    if path is None:
        return
    if os.path.lexists(path):
        raise DomainError(f"{option} {path}: exists, and files are never overwritten; choose another name")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DomainError(
            f"{option} {path}: there is no folder {path.parent} that can be written; choose another"
        )


def _number(word: str, kind: Callable[[str], Number], wanted: str) -> Number:
    try:
        return kind(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from None


def _parsed(parse: Callable[[str], Parsed], word: str) -> Parsed:
    """What a function of the library makes of a word; argparse shows the sentence of its error."""
    try:
        return parse(word)
    except DomainError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
