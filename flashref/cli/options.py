"""The words of the command line, turned into values; a bad word gets one sentence."""

import argparse
import os
import re
from collections.abc import Callable
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from flashref.decode import sum_predicted, sum_resident
from flashref.models.budget import UNITS, Amount
from flashref.models.predictors import FILE_NAME
from flashref.simulate.placement import moved_by_fill, moved_by_swap
from flashref.slots import fill_holes, swap_with_last
from flashref.storage.calibration import device_of
from flashref.storage.device import PRESETS, Device
from flashref.types import DomainError

Number = TypeVar("Number", int, float)


TINY = Path(str(files("flashref"))) / "data" / "tiny"
HELD_OUT, PERPLEXITY_TOKENS = "held_out.txt", 1024
PROMPT = "And the king said unto David, "
SEMANTICS = {"resident": sum_resident, "predicted": sum_predicted}
PLACEMENTS = {"swap_with_last": swap_with_last, "fill_holes": fill_holes}
MOVES = {"swap_with_last": moved_by_swap, "fill_holes": moved_by_fill}  # rows moved by each, in a replay


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of `flashref run`."""
    add = parser.add_argument
    add(
        "--model",
        metavar="DIR",
        default=TINY,
        type=Path,
        help="Hugging Face checkpoint (default: a tiny one)",
    )
    add(
        "--image",
        metavar="FILE",
        type=Path,
        help="its flash image: used if it exists, else packed and kept (FILE.unbundled beside it)",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", default=PROMPT, help=f"(default: {PROMPT!r})")
    prompts.add_argument("--prompt-ids", metavar="IDS", type=ids, help="token ids, such as 3,17,96")
    add("--tokens", metavar="N", type=at_least(1), default=96, help="new tokens (default: 96)")
    add(
        "--memory",
        metavar="SHARE|BYTES",
        type=memory,
        default=0.5,
        help="of the model's bytes, such as 0.5 (the default); or bytes, such as 6GB or 512MiB",
    )
    add(
        "--window",
        metavar="K",
        type=at_least(1),
        help="tokens (default: the largest up to 5 whose mean need fits)",
    )
    add(
        "--semantics",
        choices=SEMANTICS,
        default="resident",
        help="which rows the FFN sums (default: resident)",
    )
    add(
        "--predictor",
        choices=("trained", "exact", "gate"),
        default="trained",
        help="exact: an oracle, not in the account; gate: by a gate projection that is resident",
    )
    add("--predictors", metavar="FILE", type=Path, help=f"trained predictors (default: DIR/{FILE_NAME})")
    add(
        "--activation",
        metavar="NAME",
        type=activation,
        help="relu or fatrelu:T, instead of the model's own",
    )
    add("--placement", choices=PLACEMENTS, default="swap_with_last", help="of rows (default: swap_with_last)")
    add_device_option(parser)
    add("--reader", choices=("memory", "direct"), default="memory", help="direct: really read, with O_DIRECT")
    add(
        "--temperature",
        metavar="T",
        type=temperature,
        default=0.0,
        help="of sampling (default: 0, greedy)",
    )
    add("--seed", metavar="S", type=at_least(0), default=0, help="of sampling (default: 0)")
    add("--cold", action="store_true", help="empty the windows after the prompt")
    add("--held-out", metavar="FILE", type=Path, help=f"a text in UTF-8 (default: DIR/{HELD_OUT})")
    add(
        "--perplexity-tokens",
        metavar="N",
        type=at_least(0),
        help="at most so many of the held-out text, with two passes each "
        f"(default: {PERPLEXITY_TOKENS}; 0: none)",
    )
    add(
        "--no-proof",
        action="store_true",
        help="no weights in memory to judge by, and no measured column; the peak of memory is held to "
        "--memory instead",
    )
    add(
        "--save-trace",
        metavar="FILE",
        type=Path,
        help="keep the neurons that were predicted, for `flashref simulate --trace`; never overwritten",
    )
    add("--json", action="store_true", help="one JSON object instead of text and tables")
    add("--quiet", action="store_true", help="no progress on stderr")


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """The option of every command that needs a device."""
    parser.add_argument(
        "--device",
        metavar="PRESET|FILE",
        default="paper_m1max_fig2b",
        help=f"JSON file (its fields: flashref spec 50), or {', '.join(PRESETS)}",
    )


def fraction(word: str) -> float:
    """A share: more than 0, at most 1."""
    value = _number(word, float, "a number such as 0.5")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a share must be more than 0 and at most 1, not {word}")
    return value


def memory(word: str) -> float | Amount:
    """A share of the model's bytes, or bytes with their unit; units of 1000 (GB) and of 1024 (GiB)."""
    units = {unit.lower(): unit for unit in UNITS}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]+)", word.lower())
    if not found:
        value = _number(word, float, "a share such as 0.5, nor bytes with a unit, such as 6GB")
        if not 0 < value <= 1:
            raise argparse.ArgumentTypeError(
                f"a share of the model must be more than 0 and at most 1, not {word}; bytes need a unit, "
                "such as 6GB"
            )
        return value
    if found[2] not in units:
        raise argparse.ArgumentTypeError(f"{word!r} has none of the units {', '.join(UNITS)}")
    return Amount(Fraction(found[1]), units[found[2]])


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


def activation(word: str) -> tuple[str, float]:
    """An activation to run instead of the model's own: relu, or fatrelu:T with its tau."""
    name, _, tau = word.partition(":")
    if word == "relu":
        return "relu", 0.0
    if name != "fatrelu" or not tau:
        raise argparse.ArgumentTypeError(
            f"{word!r} is not relu, nor fatrelu with its tau, such as fatrelu:0.05"
        )
    value = _number(tau, float, "a number such as 0.05")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"FATReLU's tau must be finite and at least 0, not {tau}")
    return name, value


def ids(word: str) -> list[int]:
    """Token ids with commas between."""
    try:
        return [int(part) for part in word.split(",")]
    except ValueError:
        wanted = "whole numbers with commas between, such as 3,17,96"
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from None


def device(word: str) -> Device:
    """A preset's name, or a JSON file of a device or of a calibration."""
    if word in PRESETS:
        return PRESETS[word]
    path = Path(word)
    if not path.is_file():
        raise DomainError(f"--device {word}: neither a file nor a preset; use one of {', '.join(PRESETS)}")
    try:
        return device_of(path.read_bytes())
    except DomainError as error:
        raise DomainError(f"{path}: {error}; correct the file, or use a preset") from None


def check_new_file(option: str, path: Path | None) -> None:
    """What would keep a file from being written at the end, said at the start: DomainError."""
    if path is None:
        return
    if os.path.lexists(path):
        raise DomainError(f"{option} {path}: exists, and files are never overwritten; choose another name")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DomainError(f"{option} {path}: {path.parent} is no folder that can be written; choose another")


def _number(word: str, kind: Callable[[str], Number], wanted: str) -> Number:
    try:
        return kind(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from None
