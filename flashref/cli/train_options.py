"""The words of `flashref train`."""

import argparse
from pathlib import Path

from flashref.cli import options as words
from flashref.models.budget import LARGEST_WINDOW
from flashref.models.predictors import FILE_NAME
from flashref.predictor import logit_threshold
from flashref.types import DomainError

FITTING = ("out", "ranks", "share", "false_negatives", "threshold", "steps", "seed")  # not with --judge


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The options of `flashref train`."""
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", type=Path, help="Hugging Face checkpoint (--judge: a tiny one)")
    add("--text", metavar="FILE", type=Path, help="UTF-8 (--judge: MODEL/held_out.txt)")
    add("--out", metavar="FILE", type=Path, help=f"to write; never overwritten (default: MODEL/{FILE_NAME})")
    add("--judge", action="store_true", help="fit nothing: judge the predictors that are there")
    add("--predictors", metavar="FILE", type=Path, help=f"to judge (default: MODEL/{FILE_NAME})")
    add(
        "--tokens",
        metavar="N",
        type=words.at_least(1),
        help="of the text at most, 12 bytes each per unit of the model's width (default: 2 GiB of them)",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--ranks",
        metavar="R",
        type=_ranks,
        help="one for all layers, or each, such as 16,32,0 (0: dense)",
    )
    sizes.add_argument(
        "--share", metavar="S", type=words.fraction, help="of the model's bytes, shared out (default: 0.06)"
    )
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--false-negatives",
        metavar="S",
        type=words.fraction,
        help="of the active neurons that thresholds, chosen a layer, may miss (default: 0.048)",
    )
    limits.add_argument(
        "--threshold", metavar="P", type=_threshold, help="a probability for all layers; the paper's is 0.5"
    )
    add("--sweep", action="store_true", help="also show what other thresholds would give")
    add(
        "--window",
        metavar="K",
        type=words.at_least(1),
        default=LARGEST_WINDOW,
        help=f"tokens that a neuron stays resident (default: {LARGEST_WINDOW})",
    )
    add(
        "--activation",
        metavar="A",
        type=words.activation,
        help="relu or fatrelu:T, not the model's own",
    )
    add("--steps", metavar="N", type=words.at_least(1), help="of a fit at most (default: 3000)")
    add("--seed", metavar="S", type=words.at_least(0), help="of the batches (default: 0)")
    add(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw layers and windows as .png, .svg or .pdf; never overwritten",
    )
    add("--json", action="store_true", help="one JSON object instead of tables")
    add("--quiet", action="store_true", help="no progress on stderr")


def check_words(options: argparse.Namespace) -> None:
    """DomainError for words that do not go together."""
    if options.judge:
        given = next((name for name in FITTING if getattr(options, name) is not None), None)
        if given:
            raise DomainError(
                f"--{given.replace('_', '-')} is for fitting; leave it out, or leave --judge out"
            )
        return
    if options.predictors is not None:
        raise DomainError("--predictors are those to judge; say --judge too, or where to write with --out")
    for name, value in (("MODEL", options.model), ("--text FILE", options.text)):
        if value is None:
            raise DomainError(f"to fit takes {name}; or judge what is there with --judge")


def _ranks(word: str) -> tuple[int, ...]:
    ranks = tuple(words.ids(word))
    if min(ranks) < 0:
        raise argparse.ArgumentTypeError(f"ranks must be at least 0, not {min(ranks)}")
    return ranks


def _threshold(word: str) -> float:
    """The logit of a probability."""
    try:
        return logit_threshold(float(word))
    except ValueError:  # a DomainError is one
        raise argparse.ArgumentTypeError(f"{word!r} is no probability between 0 and 1, such as 0.5") from None
