"""`flashref train`: fits a predictor for each layer, and judges it on text that it has not seen."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashref.cli import report
from flashref.cli.options import HELD_OUT, activation, at_least, fraction, ids
from flashref.cli.plots import check_plot, save_plot
from flashref.models.budget import LARGEST_WINDOW
from flashref.models.checkpoint import TINY
from flashref.models.predictors import FILE_NAME
from flashref.predictor import logit_threshold
from flashref.simulate.look import COLOURS, MARKERS, STYLE, new_plot
from flashref.storage.progress import Progress
from flashref.types import DomainError

if TYPE_CHECKING:  # it needs JAX
    from flashref.training import Evaluation, FitPlan

FITTING = ("out", "ranks", "share", "false_negatives", "threshold", "steps", "seed")  # not with --judge
# The probabilities that --sweep tries.
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9)
WIDTH, HEIGHT = 900, 380  # the size of the figure, in points


def add_parser(commands: Any) -> None:
    """Add `train` to the commands."""
    parser = commands.add_parser(
        "train",
        help="fit low-rank predictors to a model, and judge them",
        description="Fit a predictor for each layer on the first eight tenths of a text, choose ranks and "
        "thresholds on the ninth tenth, and judge the predictors on the last. Finished layers are kept, so "
        "that the same command continues after an interrupt. With --judge, judge existing predictors "
        "instead.",
    )
    _add_inputs(parser)
    _add_fitting(parser)
    _add_results(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Fit predictors, or judge those that exist; print the result first, and draw it after that."""
    _check(options)
    check_plot(options.plot)
    with report.progress(options.quiet) as progress:
        found = _judge(options, progress) if options.judge else _fit(options, progress)
    print(json.dumps(found.as_json(), indent=2, allow_nan=False) if options.json else found)
    if options.plot is not None:
        _plot(options.plot, found)
    return 0


def _fit(options: argparse.Namespace, progress: Progress) -> "Evaluation":
    from flashref import training  # JAX: only when it is needed
    from flashref.training.partial_dir import partial_dir_of

    try:
        return training.fit(
            options.model,
            options.text,
            options.out,
            plan=_plan(options),
            activation=options.activation,
            sweep=_thresholds(options),
            progress=progress,
            announce=lambda what: _say(options, what),
        )
    except KeyboardInterrupt:
        folder = partial_dir_of(options.out or options.model / FILE_NAME)
        if folder.exists():
            _say(options, f"the finished layers are kept in {folder}; the same command continues from there")
        raise


def _judge(options: argparse.Namespace, progress: Progress) -> "Evaluation":
    model = options.model or TINY
    text = options.text or model / HELD_OUT
    if options.text is None and model.is_dir() and not text.is_file():
        raise DomainError(f"{model} has no {HELD_OUT} to judge on; give a text with --text FILE")

    from flashref import training  # JAX: only when it is needed

    return training.judge(
        model,
        text,
        options.predictors,
        window=options.window,
        tokens=options.tokens,
        activation=options.activation,
        sweep=_thresholds(options),
        progress=progress,
    )


def _plan(options: argparse.Namespace) -> "FitPlan":
    """The plan that the options ask for, with defaults for the rest."""
    from flashref.training import FitPlan

    default, seed = FitPlan(), options.seed or 0
    return FitPlan(
        options.ranks,
        options.share or default.share,
        options.false_negatives or default.false_negatives,
        options.threshold,
        options.window,
        default.search._replace(seed=seed),
        default.fit._replace(seed=seed, steps=options.steps or default.fit.steps),
        options.tokens,
    )


def _thresholds(options: argparse.Namespace) -> list[float]:
    return [logit_threshold(probability) for probability in GRID] if options.sweep else []


def _plot(path: Path, found: "Evaluation") -> None:
    """Draw the figures into a new file that appears whole or not at all."""
    import matplotlib  # slow to import

    from flashref.training import draw

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = new_plot(WIDTH, HEIGHT)
        draw(figure, found, COLOURS, MARKERS)
        save_plot(path, figure)


def _say(options: argparse.Namespace, message: str) -> None:
    if not options.quiet:
        print(f"flashref train: {message}", file=sys.stderr)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        nargs="?",
        type=Path,
        help="folder of the Hugging Face checkpoint (with --judge, the default is the shipped tiny model)",
    )
    add(
        "--text",
        metavar="FILE",
        type=Path,
        help="text file in UTF-8 (with --judge, the default is MODEL/held_out.txt)",
    )
    add(
        "--tokens",
        metavar="N",
        type=at_least(1),
        help="use at most N tokens of the text, and with --judge at most a tenth of N; each token takes 12 "
        "bytes of memory times the model's width (default: as many as fit into 2 GiB)",
    )
    add(
        "--activation",
        metavar="A",
        type=activation,
        help="run the model with this activation instead of its own: relu, or fatrelu:T with threshold T",
    )
    add("--judge", action="store_true", help="judge existing predictors, and fit nothing")
    add(
        "--predictors",
        metavar="FILE",
        type=Path,
        help=f"file of the predictors that --judge judges (default: MODEL/{FILE_NAME})",
    )


def _add_fitting(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--out",
        metavar="FILE",
        type=Path,
        help=f"write the predictors to FILE, which must not exist (default: MODEL/{FILE_NAME})",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--ranks",
        metavar="R",
        type=_ranks,
        help="ranks of the predictors: one number for all layers, or one for each layer, such as 16,32,0; a "
        "layer with rank 0 gets no predictor and stays in memory",
    )
    sizes.add_argument(
        "--share",
        metavar="S",
        type=fraction,
        help="give all predictors together this share of the model's bytes, and choose the rank of each "
        "layer (default: 0.06)",
    )
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--false-negatives",
        metavar="S",
        type=fraction,
        help="choose the layers' thresholds so that their false negative rate, the share of active neurons "
        "that are not predicted, is at most S (default: 0.048)",
    )
    limits.add_argument(
        "--threshold",
        metavar="P",
        type=_threshold,
        help="use probability P as the threshold of every layer; the paper uses 0.5",
    )
    add(
        "--steps",
        metavar="N",
        type=at_least(1),
        help="largest number of batches in the fit of a layer (default: 3000)",
    )
    add("--seed", metavar="S", type=at_least(0), help="seed of the random batches (default: 0)")


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--window",
        metavar="K",
        type=at_least(1),
        default=LARGEST_WINDOW,
        help=f"length of the window whose neurons are reported, in tokens (default: {LARGEST_WINDOW})",
    )
    add("--sweep", action="store_true", help="also print what other thresholds would give")
    add(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw the errors and the windows into FILE (.png, .svg or .pdf), which must not exist",
    )
    add("--json", action="store_true", help="print the result as one JSON object instead of tables")
    add("--quiet", action="store_true", help="show no progress on stderr")


def _check(options: argparse.Namespace) -> None:
    """DomainError if options contradict each other or one is missing."""
    if options.judge:
        given = next((name for name in FITTING if getattr(options, name) is not None), None)
        if given:
            raise DomainError(
                f"--{given.replace('_', '-')} is an option for fitting; leave out either it or --judge"
            )
        return
    if options.predictors is not None:
        raise DomainError(
            "--predictors is an option for --judge; add --judge, or choose the file to write with --out"
        )
    for name, value in (("MODEL", options.model), ("--text FILE", options.text)):
        if value is None:
            raise DomainError(f"fitting needs {name}; to judge existing predictors, add --judge")
    if options.plot is not None and options.plot == (options.out or options.model / FILE_NAME):
        raise DomainError(f"--plot {options.plot}: the predictors go into this file; choose another name")


def _ranks(word: str) -> tuple[int, ...]:
    ranks = tuple(ids(word))
    if min(ranks) < 0:
        raise argparse.ArgumentTypeError(f"a rank must be at least 0, not {min(ranks)}")
    return ranks


def _threshold(word: str) -> float:
    """The logit of a probability that is given as text."""
    try:
        return logit_threshold(float(word))
    except ValueError:  # a DomainError is one
        raise argparse.ArgumentTypeError(
            f"{word!r} is not a probability between 0 and 1, such as 0.5"
        ) from None
