"""The words of `flashref simulate`, turned into values."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flashref.cli.options import MOVES, TINY, at_least, fraction
from flashref.simulate.orders import ORDERS
from flashref.simulate.policies import POLICIES
from flashref.simulate.shapes.presets import CONFIGS, preset_shape
from flashref.simulate.shapes.shape import ModelShape, shape_of_config
from flashref.simulate.synthetic import FALCON_PROCESS, OPT_PROCESS, ActivationProcess
from flashref.simulate.tokens import M1_MAX_CPU
from flashref.storage.calibration import calibration_from_json
from flashref.storage.device import PRESETS
from flashref.storage.fit import Errors
from flashref.types import STORED_DTYPES, DomainError, ImageError

Item = TypeVar("Item")

DEFAULT_POLICIES = ["naive", "hybrid", "predictor", "window", "lru", "belady"]
ROWS = {"unbundled": False, "bundled": True}
TOKENS, WARM = 256, 32
GB = 10**9

# What specs/50-device.md says of a preset's error; of the others no measurement is at hand.
PRESET_ERRORS = {"paper_m1max_fig2b": Errors(median=0.038, p90=0.077, max=0.101)}


def add_simulate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `flashref simulate`."""
    add = parser.add_argument
    add(
        "--model",
        metavar="PRESET|FILE",
        default="opt-6.7b",
        help=f"a model's config.json, or tiny, {', '.join(CONFIGS)} (default: opt-6.7b)",
    )
    add("--dtype", choices=STORED_DTYPES, help="of the weights (default: config.json's; F16 for a preset)")
    add("--trace", metavar="FILE", type=Path, help="a recorded trace (default: a synthetic one is drawn)")
    add("--tokens", metavar="N", type=at_least(1), help=f"of a synthetic trace, counted (default: {TOKENS})")
    add("--warm", metavar="N", type=at_least(0), help=f"tokens before, not counted (default: {WARM})")
    add("--seed", metavar="S", type=at_least(0), help="of the synthetic trace (default: 0)")
    add("--save-trace", metavar="FILE", type=Path, help="keep the trace, for --trace; never overwritten")
    device = "paper_m1max_fig2b"
    add(
        "--device",
        metavar="LIST",
        type=listed(str),
        default=[device],
        help=f"JSON files, such as calibrate writes, or {', '.join(PRESETS)} (default: {device})",
    )
    add(
        "--memory",
        metavar="LIST",
        type=listed(fraction),
        default=[0.5],
        help="of the model's bytes (default: 0.5)",
    )
    add(
        "--window",
        metavar="LIST",
        type=listed(_window),
        default=[None],
        help="tokens, or auto: the largest up to 5 whose mean need fits (default: auto)",
    )
    add(
        "--policy",
        metavar="LIST",
        type=listed(one_of(POLICIES)),
        default=DEFAULT_POLICIES,
        help=f"of {', '.join(POLICIES)} (default: {','.join(DEFAULT_POLICIES)})",
    )
    add(
        "--rows",
        metavar="LIST",
        type=listed(one_of(ROWS)),
        default=list(ROWS),
        help=f"how they lie on flash (default: {','.join(ROWS)})",
    )
    add(
        "--order",
        metavar="LIST",
        type=listed(one_of(ORDERS)),
        default=["natural"],
        help=f"of neurons on flash: {', '.join(ORDERS)}, learnt from the uncounted tokens (default: natural)",
    )
    add(
        "--max-gap",
        metavar="LIST",
        type=listed(at_least(0)),
        default=[0],
        help="bytes between two reads that are read over to join them (default: 0)",
    )
    add("--placement", choices=MOVES, default="swap_with_last", help="of rows (default: swap_with_last)")
    add(
        "--copy-bandwidth",
        metavar="GB/S",
        type=_bytes_per_second,
        default=M1_MAX_CPU.copy_bandwidth,
        help="of rows put or moved in memory; 0: no limit (default: the paper's M1 Max, "
        f"{M1_MAX_CPU.copy_bandwidth / GB:g})",
    )
    add(
        "--compute-bandwidth",
        metavar="GB/S",
        type=_bytes_per_second,
        default=M1_MAX_CPU.compute_bandwidth,
        help="of weights multiplied; 0: no limit (default: the paper's M1 Max, CPU, "
        f"{M1_MAX_CPU.compute_bandwidth / GB:g})",
    )
    add("--workers", metavar="N", type=at_least(1), default=1, help="processes (default: 1)")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    forms.add_argument("--csv", action="store_true", help="a line for every configuration instead of a table")
    add("--plot", metavar="FILE", type=Path, help="draw times as .png, .svg or .pdf; never overwritten")
    add("--quiet", action="store_true", help="no progress on stderr")


def listed(item: Callable[[str], Item]) -> Callable[[str], list[Item]]:
    """Words with commas between, each turned into a value; a repeated value counts once."""

    def parse(word: str) -> list[Item]:
        return list(dict.fromkeys(item(part.strip()) for part in word.split(",")))

    return parse


def one_of(known: Sequence[str] | Any) -> Callable[[str], str]:
    """One of these words."""

    def parse(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is unknown; use {', '.join(known)}")
        return word

    return parse


def shape(word: str, dtype: str | None) -> ModelShape:
    """The shape of a preset, or of the model that a config.json describes. Raises DomainError, ImageError."""
    if word in CONFIGS:
        return preset_shape(word, dtype or "F16")
    path = TINY if word == TINY.name else Path(word)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise DomainError(
            f"--model {word}: neither a config.json nor a preset; use one of tiny, {', '.join(CONFIGS)}"
        )
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{path}: is no JSON ({error}); give the config.json of a model") from None
    if not isinstance(values, dict):
        raise ImageError(f"{path}: holds no JSON object; give the config.json of a model")
    try:
        return shape_of_config(values, word, dtype)
    except (DomainError, ImageError) as error:
        raise type(error)(f"{path}: {error}") from None


def process(model: ModelShape) -> ActivationProcess:
    """The one that is fitted to OPT, or, as for every other model, to the paper's Fig. 4a."""
    return OPT_PROCESS if model.name.startswith("opt-") else FALCON_PROCESS


def device_errors(word: str) -> Errors | None:
    """How far a device may be trusted: a calibration says so, and a chapter of some presets."""
    if word in PRESETS:
        return PRESET_ERRORS.get(word)
    try:
        calibration = calibration_from_json(Path(word).read_bytes())
    except DomainError:  # a device without its calibration
        return None
    judged = calibration.verification or calibration
    # A quiet minute fits well, and the next one reads otherwise: the disk's own noise is a part of the error.
    return Errors(*map(max, judged.error, judged.noise))


def _window(word: str) -> int | None:
    return None if word == "auto" else at_least(1)(word)


def _bytes_per_second(word: str) -> int:
    try:
        value = round(float(word) * GB)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of GB/s, such as 14") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"a bandwidth must be at least 0, not {word}")
    return value
